"""Models that are folders (MLflow, Hugging Face, TensorFlow), each made by its own library in an
environment of
its own, then `init` and `check` as somebody types them: the answers are the library's.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.settings import Settings
from flows.wiring import model_packages
from tests.integration.conftest import TypeIn

pytestmark = pytest.mark.timeout(900)  # environments of a gigabyte are made


def made(state: Path, folder: Path, kind: str, requirements: str, script: str) -> Any:
    """Run a training in the environment of a kind of model; what it prints last, as JSON."""
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_text(requirements)
    packages = model_packages(Settings(state=state))
    python = packages.python(packages.lock(folder, folder, kind))
    began = time.monotonic()
    done = subprocess.run(
        [python, "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"{kind}: made in {time.monotonic() - began:.1f} s")
    (folder / "requirements.txt").unlink()
    return json.loads(done.stdout.splitlines()[-1])


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def spec(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text())
    return found


HUGGING_FACE = """
import json, torch, transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] I liked it very much broke after a week and nobody answered".split()
tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", cls_token="[CLS]",
    sep_token="[SEP]",
)
torch.manual_seed(3)
config = transformers.BertConfig(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=32, num_labels=3,
    id2label={0: "bad", 1: "fair", 2: "good"}, initializer_range=0.8,
)
model = transformers.ARCHITECTURE(config).eval()
model.save_pretrained("tiny")
fast.save_pretrained("tiny")
TEXTS = ["I liked it very much.", "It broke after a week and nobody answered.", "The parcel came on Tuesday."]
answers = []
for text in TEXTS:
    batch = fast([text], return_tensors="pt")
    with torch.inference_mode():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    answers.append(ANSWER)
print(json.dumps(answers))
"""


@pytest.mark.thorough  # `make thorough` plays what makes environments of a gigabyte
def test_a_folder_of_hugging_face_classifies(state: Path, tmp_path: Path, type_in: TypeIn) -> None:
    script = HUGGING_FACE.replace("ARCHITECTURE", "BertForSequenceClassification")
    script = script.replace("ANSWER", "out.logits.softmax(-1)[0].tolist()")
    direct = made(state, tmp_path / "made", "huggingface", "", script)
    code, said = type_in("init", "reviews", "--from", "made/tiny")
    assert code == 0, said
    assert "guessed: task: text-classification" in said
    assert spec(tmp_path / "reviews")["signature"]["outputs"] == [
        {"name": "label", "type": "string"},
        {"name": "score", "type": "number", "minimum": 0, "maximum": 1},
        {"name": "scores", "type": "number", "shape": [3], "minimum": 0, "maximum": 1},
    ]
    for sample, scores in zip(samples(tmp_path / "reviews"), direct, strict=True):
        [found] = sample["predictions"]
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
        assert found["label"] == ["bad", "fair", "good"][int(np.argmax(scores))]
    code, said = type_in("check", "reviews")
    assert code == 0, said
    assert "answered 3 golden requests" in said


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "answer", "output"),
    [
        ("BertModel", "out.last_hidden_state.mean(1)[0].tolist()", "embedding"),
        ("BertForMaskedLM", "None", "token"),
    ],
)
def test_other_tasks_of_hugging_face(
    architecture: str, answer: str, output: str, state: Path, tmp_path: Path, type_in: TypeIn
) -> None:
    script = HUGGING_FACE.replace("ARCHITECTURE", architecture).replace("ANSWER", answer)
    direct = made(state, tmp_path / "made", "huggingface", "", script)
    code, said = type_in("init", "tiny", "--from", "made/tiny")
    assert code == 0, said
    outputs = [one["name"] for one in spec(tmp_path / "tiny")["signature"]["outputs"]]
    assert outputs[0] == output
    if output == "embedding":
        for sample, expected in zip(samples(tmp_path / "tiny"), direct, strict=True):
            np.testing.assert_allclose(sample["predictions"][0], expected, atol=1e-4)
    assert type_in("check", "tiny")[0] == 0


def test_what_is_wrong_with_a_folder_of_hugging_face_is_one_line(tmp_path: Path, type_in: TypeIn) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    code, said = type_in("init", "tiny", "--from", "tiny")
    assert (code, "ViTForImageClassification does none of text-classification" in said) == (1, True), said
    (tmp_path / "tiny" / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    (tmp_path / "tiny" / "pytorch_model.bin").write_bytes(b"weights")
    code, said = type_in("init", "other", "--from", "tiny")
    assert (code, "no weights in safetensors" in said) == (1, True), said


MLFLOW = """
import json, mlflow, numpy, pandas
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

chance = numpy.random.default_rng(4)
rows = pandas.DataFrame({"age": chance.normal(40, 9, 50), "calls": chance.integers(0, 9, 50).astype("int32")})
model = LinearRegression().fit(rows, rows.age * 2 + rows.calls)
answers = model.predict(rows)
mlflow.sklearn.save_model(
    model, "logged", signature=infer_signature(rows, answers), input_example=rows[:3],
    pip_requirements=["mlflow==3.99.0", "scikit-learn==1.9.1", "numpy==1.26.0"],
)
print(json.dumps(answers[:3].tolist()))
"""


@pytest.mark.thorough
def test_a_folder_of_mlflow(state: Path, tmp_path: Path, type_in: TypeIn) -> None:
    direct = made(state, tmp_path / "made", "mlflow", "scikit-learn==1.9.1\n", MLFLOW)
    code, said = type_in("init", "spend", "--from", "made/logged")
    assert (code, "reading it can run anything" in said) == (1, True), said
    code, said = type_in("init", "spend", "--from", "made/logged", "--trust-pickle")
    assert code == 0, said
    assert "requirements.txt: without numpy==1.26.0 (the server has" in said
    assert "requirements.txt: without mlflow==3.99.0 (mlflow-skinny takes its place)" in said
    assert (tmp_path / "spend" / "requirements.txt").read_text() == "scikit-learn==1.9.1\n"
    assert spec(tmp_path / "spend")["signature"]["inputs"] == [
        {"name": "age", "type": "number"},
        {"name": "calls", "type": "integer"},
    ]
    found = [sample["predictions"][0] for sample in samples(tmp_path / "spend")]
    np.testing.assert_allclose(found, direct, rtol=1e-9)
    code, said = type_in("check", "spend")
    assert code == 0, said

    (tmp_path / "spend" / "requirements.txt").unlink()
    code, said = type_in("check", "spend")
    assert code == 1
    assert "logged/requirements.txt:3: numpy==1.26.0 conflicts with the server's own numpy" in said

    (tmp_path / "spend" / "requirements.txt").write_text("scikit-learn==1.9.1\n")
    text = (tmp_path / "spend" / "model.yaml").read_text()
    (tmp_path / "spend" / "model.yaml").write_text(text.replace("name: calls", "name: called"))
    rows = (tmp_path / "spend" / "samples.jsonl").read_text()
    (tmp_path / "spend" / "samples.jsonl").write_text(rows.replace("calls", "called"))
    code, said = type_in("check", "spend")
    assert (code, "was logged with the inputs age, calls; signature.inputs has age, called" in said) == (
        1,
        True,
    ), said


TENSORFLOW = """
import json, tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.weights = tf.Variable([[0.5], [-1.0], [2.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serve(self, x):
        return {"probability": tf.sigmoid(tf.matmul(x, self.weights))}

model = Model()
tf.saved_model.save(model, "saved", signatures={"serving_default": model.serve})
print(json.dumps(model.serve(tf.constant([[1.0, 2.0, 3.0]]))["probability"].numpy().tolist()))
"""


@pytest.mark.thorough
def test_a_saved_model_of_tensorflow(state: Path, tmp_path: Path, type_in: TypeIn) -> None:
    [[direct]] = made(state, tmp_path / "made", "tensorflow", "", TENSORFLOW)
    code, said = type_in("init", "flow", "--from", "made/saved")
    assert code == 0, said
    assert spec(tmp_path / "flow")["signature"] == {
        "inputs": [{"name": "x", "type": "number", "shape": [3]}],
        "outputs": [{"name": "probability", "type": "number"}],
    }
    for sample in samples(tmp_path / "flow"):
        [row] = sample["instances"]
        expected = 1 / (1 + np.exp(-np.dot(row["x"], [0.5, -1.0, 2.0])))
        assert sample["predictions"][0] == pytest.approx(expected, abs=1e-5)
    known = {"instances": [{"x": [1.0, 2.0, 3.0]}], "predictions": [direct], "tolerance": 1e-5}
    (tmp_path / "flow" / "samples.jsonl").write_text(json.dumps(known) + "\n")
    code, said = type_in("check", "flow")
    assert code == 0, said
