"""Hugging Face: the task follows from the architecture that stands in config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.errors import StartupError
from serving.looking.found import Asked, Found, column
from serving.runtimes.huggingface import TASKS, read_pipeline
from serving.spec import RuntimeSpec

ENDINGS = {
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "Model": "feature-extraction",
}
TEXTS = ("I liked it very much.", "It broke after a week and nobody answered.", "The parcel came on Tuesday.")


def look_huggingface(path: Path, asked: Asked) -> Found:
    architectures = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    task = next((ENDINGS[end] for name in architectures for end in ENDINGS if name.endswith(end)), None)
    if task is None:
        raise StartupError(
            f"{path}: {', '.join(architectures) or 'no architecture'} does none of {', '.join(TASKS)}; "
            "write a "
            "handler.py that calls transformers"
        )
    runtime: dict[str, Any] = {"kind": "huggingface", "file": path.name, "task": task}
    if asked.trust_pickle:
        runtime["trust_pickle"] = True
    pipeline = read_pipeline(path.parent, RuntimeSpec.model_validate(runtime))
    mask = f" {pipeline.tokenizer.mask_token}" if task == "fill-mask" else ""
    texts = [text + mask for text in TEXTS]
    answers = TASKS[task](pipeline, texts)
    chance = {"minimum": 0, "maximum": 1}
    outputs = [
        column(name, one.dtype, one.shape[1:], **(chance if name.startswith("score") else {}))
        for name, one in answers.items()
    ]
    return Found(
        f"{architectures[0]} of transformers, {task}",
        runtime,
        [column("text", "object")],
        outputs,
        rows=[{"text": text} for text in texts],
        guessed=[f"task: {task}, by its architecture"],
    )
