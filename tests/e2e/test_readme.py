"""README's "your own model in five minutes", word for word, in an empty folder.

And the same with a model of scikit-learn, for which nothing is written by hand.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.free_ports import stack_variables

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## Add your own model in five minutes")[1].split("\n## ")[0]
FENCES = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)
MINUTES = 8
GATEWAY = "localhost:10000"

pytestmark = pytest.mark.timeout((2 * MINUTES + 2) * 60)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A shell of somebody who has set the project up, with a stack of its own and `modelserve` at hand."""
    state = tmp_path_factory.mktemp("readme") / "state"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **stack_variables(state, 28000), "PATH": path, "COLUMNS": "120"}
    environment.pop("PYTHONPATH", None)
    yield environment
    subprocess.run(["modelserve", "down"], env=environment, cwd=state.parent, timeout=180, check=True)


def typed(commands: str, folder: Path, environment: dict[str, str]) -> str:
    """What the commands print, one after another; the first that fails ends it."""
    # Where the stack of this test listens; all else is as it stands there.
    commands = commands.replace(GATEWAY, f"localhost:{environment['MODELSERVE_PORTS__GATEWAY']}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MINUTES * 60,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def scanning(environment: dict[str, str]) -> str:
    """What model.yaml needs beside README's text: nothing, or, without vulnerabilities to scan for, less."""
    done = subprocess.run(
        ["modelserve", "prepare", "--database"],
        env=environment,
        capture_output=True,
        timeout=600,
        check=False,
    )
    return "" if done.returncode == 0 else "scan: {mode: record}\n"


def test_the_block_does_what_it_says(environment: dict[str, str], scanning: str, tmp_path: Path) -> None:
    texts = {language: text for language, text in FENCES if language}
    plain = [text for language, text in FENCES if not language]
    (making,) = [text for text in plain if text.startswith("python -c")]
    (samples,) = [text for text in plain if text.startswith("{")]
    (commands,) = [text for text in plain if text.startswith("modelserve up")]
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / "model.yaml").write_text(texts["yaml"] + scanning)
    (folder / "handler.py").write_text(texts["python"])
    (folder / "samples.jsonl").write_text(samples)
    typed(making, tmp_path, environment)
    begun = time.monotonic()
    printed = typed(commands, tmp_path, environment)
    print(f"from an empty folder to an answer: {time.monotonic() - begun:.0f} s")
    first = json.loads(samples.splitlines()[0])
    answer = json.loads(printed.splitlines()[-1])
    assert answer["predictions"] == pytest.approx(first["predictions"], abs=first["tolerance"])


@pytest.mark.thorough
def test_a_model_of_scikit_learn_needs_nothing_by_hand(
    environment: dict[str, str], scanning: str, tmp_path: Path
) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from skops.io import dump

    data = load_iris(as_frame=True)
    model = LogisticRegression(max_iter=500).fit(data.data, data.target)
    dump(model, tmp_path / "model.skops")
    row = data.data.iloc[[120]]
    body = json.dumps({"instances": row.to_dict("records")})
    typed("modelserve up", tmp_path, environment)
    begun = time.monotonic()
    printed = typed(
        "modelserve init iris --from model.skops\n"
        f"printf '{scanning.strip()}\\n' >> iris/model.yaml\n"
        "modelserve register iris\n"
        "modelserve promote iris 1 --watch\n"
        f"curl -s {GATEWAY}/models/iris/predict -H 'content-type: application/json' -d '{body}'",
        tmp_path,
        environment,
    )
    print(f"from model.skops to an answer: {time.monotonic() - begun:.0f} s")
    (answer,) = json.loads(printed.splitlines()[-1])["predictions"]
    (label,) = [value for value in answer.values() if not isinstance(value, list)]
    (probabilities,) = [value for value in answer.values() if isinstance(value, list)]
    assert int(label) == int(model.predict(row)[0])
    assert probabilities == pytest.approx(list(model.predict_proba(row)[0]), abs=1e-6)
