"""A handler is a module like any other, and everything that it imports from the bundle is sealed."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.errors import BundleCorrupt, SpecProblem, StartupError
from serving.inference.bundle import load_bundle, seal
from serving.spec import read_model_file
from tests.serving.model_bundles import write_bundle
from tests.serving.server_runs import ROOT

SIGNATURE: dict[str, object] = {
    "inputs": [{"name": "x", "type": "number"}],
    "outputs": [{"name": "y", "type": "number"}],
}
HANDLER = """
    from __future__ import annotations

    import pickle
    from dataclasses import dataclass
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from typing import ClassVar

    from scaling import factor
    from steps.plus import one


    @dataclass
    class Line:
        kind: ClassVar[str] = "straight"
        slope: float = factor()

        def __call__(self, x: float) -> float:
            return one(self.slope * x)


    def load(folder, device):
        path = folder / "line.pickle"
        return pickle.loads(path.read_bytes()) if path.exists() else Line()


    def predict(model, rows):
        xs = [row["x"] for row in rows]
        if 100.0 not in xs:
            return [{"y": model(x)} for x in xs]
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return [{"y": y} for y in pool.map(model, xs)]
    """


def a_bundle(folder: Path, **runtime: object) -> Path:
    (folder / "steps").mkdir(parents=True)
    files = {
        "handler.py": HANDLER,
        "scaling.py": "def factor():\n    return 2.0\n",
        "steps/plus.py": "def one(x):\n    return x + 1\n",
    }
    return write_bundle(
        folder, signature=SIGNATURE, serving={"runtime": {"kind": "handler", **runtime}}, files=files
    )


ANSWERS = """
import json, sys
from pathlib import Path
from serving.errors import StartupError
from serving.inference.bundle import load_bundle
from serving.runtimes import make_runtime
bundle = Path(sys.argv[1])
try:
    runtime = make_runtime(load_bundle(str(bundle)).model, bundle)
except StartupError as error:
    sys.exit(str(error))
print(json.dumps([row["y"] for row in runtime.predict([{"x": x} for x in json.loads(sys.argv[2])])]))
"""


def answers(bundle: Path, *xs: float) -> list[float]:
    """In a process of its own, as a server has one bundle. StartupError as there."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(bundle), json.dumps(xs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise StartupError(done.stderr.strip())
    result: list[float] = json.loads(done.stdout)
    return result


def test_siblings_packages_and_dataclasses_work(tmp_path: Path) -> None:
    assert answers(a_bundle(tmp_path / "one"), 3.0) == [7.0]
    other = a_bundle(tmp_path / "two")
    (other / "scaling.py").write_text("def factor():\n    return 5.0\n")
    seal(other)
    assert answers(other, 3.0) == [16.0]


def test_a_pickled_class_of_its_own_is_found_again(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "b")
    # As a training script leaves it: `from handler import Line`, run in the model's folder.
    code = (
        "import pickle; from handler import Line; open('line.pickle', 'wb').write(pickle.dumps(Line(10.0)))"
    )
    subprocess.run([sys.executable, "-B", "-c", code], cwd=bundle, check=True)
    seal(bundle)
    assert answers(bundle, 3.0) == [31.0]


def test_a_process_pool_finds_the_handler(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from serving.runtimes import make_runtime;"
        "from serving.spec import read_model_file; b = Path(sys.argv[1]);"
        "r = make_runtime(read_model_file(b / 'model.yaml'), b); print(r.predict([{'x': 100.0}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[{'y': 201.0}]", done.stderr


def test_byte_code_beside_the_files_does_not_count(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "b")
    evil = tmp_path / "evil.py"
    evil.write_text("def factor():\n    return -1.0\n")
    cached = bundle / "__pycache__" / f"scaling.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(
        str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    before = sorted(bundle.rglob("*"))
    assert answers(bundle, 3.0) == [7.0]
    assert sorted(bundle.rglob("*")) == before, "nothing is written into a bundle"


def test_a_file_of_the_bundle_replaces_no_module_of_the_server(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "b")
    (bundle / "orjson.py").write_text("raise RuntimeError('the bundle was imported')\n")
    (bundle / "handler.py").write_text(
        "import orjson\ndef load(folder, device): ...\n"
        "def predict(model, rows): return [{'y': float(orjson.loads(b'4'))} for row in rows]\n"
    )
    seal(bundle)
    assert answers(bundle, 3.0) == [4.0]
    (bundle / "json.py").write_text("def load(folder, device): ...\ndef predict(model, rows): ...\n")
    content = yaml.safe_load((bundle / "model.yaml").read_text())
    content["serving"]["runtime"]["handler"] = "json.py"
    (bundle / "model.yaml").write_text(yaml.safe_dump(content))
    seal(bundle)
    with pytest.raises(StartupError, match="a module 'json' of its own"):
        answers(bundle, 1.0)


@pytest.mark.parametrize("path", ["../outside.py", "/etc/handler.py", "a/../../outside.py"])
@pytest.mark.parametrize("key", ["handler", "file"])
def test_a_path_does_not_leave_the_folder(tmp_path: Path, key: str, path: str) -> None:
    (tmp_path / "outside.py").write_text("def load(folder, device): ...\ndef predict(model, rows): ...\n")
    bundle = a_bundle(tmp_path / "b", **{key: path})
    with pytest.raises(SpecProblem, match=rf"serving\.runtime\.{key}: leaves the model's folder"):
        read_model_file(bundle / "model.yaml")
    with pytest.raises(StartupError, match="leaves the model's folder"):
        load_bundle(str(bundle))


def test_a_link_does_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("def factor():\n    return 2.0\n")
    bundle = a_bundle(tmp_path / "b")
    (bundle / "scaling.py").unlink()
    (bundle / "scaling.py").symlink_to(tmp_path / "outside.py")
    seal(bundle)
    with pytest.raises(BundleCorrupt, match=r"scaling\.py: a link that leaves the folder"):
        load_bundle(str(bundle))
