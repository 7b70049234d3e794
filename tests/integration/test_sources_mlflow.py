"""Models out of a real MLflow tracking server, which runs in an environment of its own.

Its packages take minutes to install: `make thorough` plays this, `make test` does not. `MLFLOW_PYTHON` may
name an interpreter that has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.adapters.sources import fetch
from flows.domain.errors import ArtifactCorrupt, DependencyDown
from tests.free_ports import free_ports

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1500)]

LIMIT = 10_000_000
TRAINING = """
import json, sys, mlflow, pandas
from mlflow.models import infer_signature

class Double(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["x"] * 2

rows = pandas.DataFrame({"x": [1.0, 2.0, 3.0]})
with mlflow.start_run() as run:
    mlflow.log_text("a", "words/vocabulary.txt")
    mlflow.pyfunc.log_model(
        name="model", python_model=Double(), signature=infer_signature(rows, rows["x"]), pip_requirements=[],
        registered_model_name="double",
    )
print(json.dumps(run.info.run_id))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if given := os.environ.get("MLFLOW_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("mlflow") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    made = str(folder / "bin" / "python")
    subprocess.run(
        [made, "-m", "pip", "install", "-q", "--only-binary=:all:", "mlflow"], check=True, timeout=1200
    )
    return made


@pytest.fixture(scope="module")
def run(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a registered model; the id of the run that has logged it."""
    folder = tmp_path_factory.mktemp("server")
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("PYTHONPATH", None)
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/db",
        "--artifacts-destination",
        str(folder / "kept"),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        deadline = time.monotonic() + 240
        while not _healthy(url):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        done = subprocess.run(
            [python, "-c", TRAINING], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        os.environ["MLFLOW_TRACKING_URI"] = url
        yield json.loads(next(line for line in done.stdout.splitlines() if line.startswith('"')))
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        server.terminate()
        server.wait(60)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.usefixtures("run")
def test_a_version_of_a_registered_model(tmp_path: Path) -> None:
    folder, sentence = fetch("models:/double/1", tmp_path, digest=None, limit=LIMIT)
    assert folder.name == "double"
    assert {"MLmodel", "requirements.txt", "python_model.pkl"} <= {path.name for path in folder.iterdir()}
    assert sentence.startswith("downloaded models:/double/1: ")


def test_what_a_run_has_logged(run: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    words, _ = fetch(f"runs:/{run}/words", tmp_path / "a", digest=None, limit=LIMIT)
    assert (words / "vocabulary.txt").read_text() == "a"
    model, _ = fetch(f"runs:/{run}/model", tmp_path / "b", digest=None, limit=LIMIT)
    assert (model / "MLmodel").is_file()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/double/7", "has no such thing"),
        ("models:/nobody/1", "has no such thing"),
        ("models:/double/Production", "expected models:/NAME/VERSION with a number"),
        ("models:/double@champion", "expected models:/NAME/VERSION with a number"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "has no such thing"),
        ("runs:/0123456789abcdef0123456789abcdef", "expected runs:/RUN/PATH"),
    ],
)
def test_what_is_not_there_is_one_line(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match=message):
        fetch(uri, tmp_path, digest=None, limit=LIMIT)


def test_a_path_that_the_run_has_not_logged(run: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="nothing is there"):
        fetch(f"runs:/{run}/none", tmp_path, digest=None, limit=LIMIT)


@pytest.mark.usefixtures("run")
def test_what_answers_is_no_mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "churn.db")
    with pytest.raises(ArtifactCorrupt, match="set MLFLOW_TRACKING_URI to the address"):
        fetch("models:/double/1", tmp_path, digest=None, limit=LIMIT)
    [port] = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(DependencyDown, match="cannot be reached"):
        fetch("models:/double/1", tmp_path, digest=None, limit=LIMIT)
