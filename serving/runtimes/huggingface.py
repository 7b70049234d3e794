"""Folders of Hugging Face's transformers: text in, what the task gives out. No hub is ever asked.

Outputs by task and name: text-classification gives `label` and `score` of the likeliest class and `scores`
of all,
in the order of the model's configuration; feature-extraction `embedding`, the mean over a text's tokens;
fill-mask
`token` and `score`; text-generation `text`, which goes on from what was sent, always the likeliest way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.runtimes.devices import choose_device
from serving.runtimes.names import in_order
from serving.spec import ModelFile, RuntimeSpec

NEW_TOKENS = 64
_NO_LIMIT = 1_000_000
"""A tokenizer that was given no length has one beyond all measure."""


class HuggingFaceRuntime:
    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        self._pipeline = read_pipeline(folder, spec)
        self._answer = TASKS[spec.task or ""]
        columns = model.signature.inputs
        if len(columns) != 1 or columns[0].type != "string" or columns[0].shape:
            raise StartupError("signature.inputs: this runtime takes one column, a string")
        self._outputs = [column.name for column in model.signature.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        answers = self._answer(self._pipeline, [str(text) for text in inputs[0]])
        return in_order("the task", self._outputs, answers)

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """Torch's threads stay as they are."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None


def read_pipeline(folder: Path, spec: RuntimeSpec) -> Any:
    """The pipeline of a folder's model. StartupError in one line; weights in pickles only with
    trust_pickle."""
    assert spec.file is not None
    path = folder / spec.file
    if not (path / "config.json").is_file():
        raise StartupError(f"{path}: no config.json there; name the model's folder in serving.runtime.file")
    if spec.task is None:
        raise StartupError(f"serving.runtime.task: name what it is asked for: {', '.join(TASKS)}")
    if not spec.trust_pickle and not list(path.glob("*.safetensors")):
        raise StartupError(
            f"{path}: no weights in safetensors; write them with save_pretrained(), or set trust_pickle: "
            "true if "
            "they are your own"
        )
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    import transformers

    made: Any = transformers.pipeline(  # type: ignore[call-overload,unused-ignore]
        spec.task,
        model=str(path),
        tokenizer=str(path),
        device=choose_device(spec.device),
        trust_remote_code=False,
        model_kwargs={} if spec.trust_pickle else {"use_safetensors": True},
    )
    made.model.eval()
    longest = getattr(made.model.config, "max_position_embeddings", None)
    if made.tokenizer.model_max_length > _NO_LIMIT and longest:
        made.tokenizer.model_max_length = longest
    return made


def classified(pipeline: Any, texts: list[str]) -> dict[str, Array]:
    answers = pipeline(texts, top_k=None, truncation=True, padding=True, batch_size=len(texts))
    labels = [str(name) for _, name in sorted(pipeline.model.config.id2label.items())]
    best = [max(answer, key=lambda one: one["score"]) for answer in answers]
    by_label = [{one["label"]: one["score"] for one in answer} for answer in answers]
    return {
        "label": np.array([one["label"] for one in best], dtype=object),
        "score": np.array([one["score"] for one in best], dtype=np.float32),
        "scores": np.array([[one[name] for name in labels] for one in by_label], dtype=np.float32),
    }


def embedded(pipeline: Any, texts: list[str]) -> dict[str, Array]:
    import torch

    batch = pipeline.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(pipeline.device)
    with torch.inference_mode():
        hidden = pipeline.model(**batch).last_hidden_state
    # What fills up shorter texts is none of theirs.
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return {"embedding": mean.float().cpu().numpy()}


def filled(pipeline: Any, texts: list[str]) -> dict[str, Array]:
    best = [pipeline(text, top_k=1)[0] for text in texts]
    return {
        "token": np.array([one["token_str"] for one in best], dtype=object),
        "score": np.array([one["score"] for one in best], dtype=np.float32),
    }


def generated(pipeline: Any, texts: list[str]) -> dict[str, Array]:
    options = {"return_full_text": False, "do_sample": False, "max_new_tokens": NEW_TOKENS}
    answers = [pipeline(text, **options)[0]["generated_text"] for text in texts]
    return {"text": np.array(answers, dtype=object)}


TASKS: dict[str, Callable[[Any, list[str]], dict[str, Array]]] = {
    "text-classification": classified,
    "feature-extraction": embedded,
    "fill-mask": filled,
    "text-generation": generated,
}
