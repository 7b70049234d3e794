"""Bundles are proved before they are read, and a bad model.yaml is explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from serving.errors import BundleCorrupt, SpecProblem, StartupError
from serving.inference.bundle import load_bundle, seal
from serving.spec import read_model_file
from tests.serving.model_bundles import affine, people
from tests.serving.server_runs import ROOT


def test_a_bundle_from_a_store_is_fetched_verified_and_discarded(tmp_path: Path) -> None:
    source = affine(tmp_path / "source")
    sha256 = seal(source)
    store = fsspec.filesystem("memory")
    store.put(str(source), "/releases/affine", recursive=True)
    bundle = load_bundle("memory://releases/affine", sha256)
    assert bundle.folder != source
    assert bundle.sha256 == sha256
    assert (bundle.folder / "model.pt").read_bytes() == (source / "model.pt").read_bytes()
    bundle.discard()
    assert not bundle.folder.exists()
    store.pipe_file("/releases/affine/model.pt", b"other")
    with pytest.raises(BundleCorrupt, match=r"model\.pt: sha256 is"):
        load_bundle("memory://releases/affine", sha256)
    store.rm("/releases/affine/model.pt")
    with pytest.raises(BundleCorrupt, match=r"model\.pt: listed in manifest\.json but not there"):
        load_bundle("memory://releases/affine")
    with pytest.raises(BundleCorrupt, match=r"no manifest\.json there"):
        load_bundle("memory://releases/nothing")
    with pytest.raises(StartupError, match="cannot be read"):
        load_bundle("nosuchscheme://bucket/x")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    bundle = affine(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleCorrupt, match="leaves the folder"):
        load_bundle(str(bundle))


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": {}}', '{"files": {"a": "b"}}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    bundle = affine(tmp_path)
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleCorrupt):
        load_bundle(str(bundle))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Bad Name"}, "name:"),
        ({"signature": {"inputs": [], "outputs": []}}, "signature.inputs:"),
        ({"serving": {}}, "serving.runtime: missing"),
        ({"serving": {"runtime": {"kind": "handler"}, "cach": {}}}, "serving.cach: unknown key"),
        ({"serving": {"runtime": {"kind": "magic"}}}, "serving.runtime.kind:"),
        ({"serving": {"runtime": {"kind": "onnx"}}}, "needs the name of the model file"),
        ({"serving": {"runtime": {"kind": "handler"}, "datatypes": {"z": "FP32"}}}, "no such column"),
        ({"serving": {"runtime": {"kind": "handler"}, "datatypes": {"x": "BYTES"}}}, "cannot hold"),
        ({"serving": {"runtime": {"kind": "handler"}, "monitor": {"output": "z"}}}, "is no output"),
        ({"serving": {"runtime": {"kind": "handler"}, "monitor": {"bins": [2, 1]}}}, "must rise"),
        (
            {"serving": {"runtime": {"kind": "handler"}, "batching": {"max_rows": 0}}},
            "serving.batching.max_rows",
        ),
    ],
)
def test_a_bad_spec_is_explained_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = affine(tmp_path) / "model.yaml"
    content = yaml.safe_load(path.read_text()) | change
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SpecProblem) as raised:
        read_model_file(path)
    assert any(message in line for line in raised.value.problems), raised.value.problems
    assert all("\n" not in line and str(path) in line for line in raised.value.problems)


def test_sections_of_the_control_plane_are_ignored(tmp_path: Path) -> None:
    path = affine(tmp_path) / "model.yaml"
    content = yaml.safe_load(path.read_text()) | {"promotion": {"anything": 1}, "drift": 7}
    path.write_text(yaml.safe_dump(content))
    assert read_model_file(path).name == "affine"


def check(folder: Path) -> tuple[int, list[str]]:
    run = subprocess.run(
        [sys.executable, "-m", "serving", "check", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stderr == ""
    return run.returncode, run.stdout.splitlines()


def test_check_prints_every_problem_of_a_folder(tmp_path: Path) -> None:
    folder = people(tmp_path)
    assert check(folder) == (0, [])
    (folder / "handler.py").write_text("def load(folder, device): ...\n")
    good = {"age": 1, "height": None, "name": "a", "member": True}
    samples = [
        {"instances": [good], "predictions": [{}]},
        {"instances": [good], "predictions": []},
        {"instances": [{**good, "age": "x"}], "predictions": [{}]},
        {"instances": [{**good, "age": "x"}], "status": 422},
        3,
    ]
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(sample) for sample in samples))
    code, lines = check(folder)
    assert code == 1
    assert [line.split(": ", 1)[0].rsplit("/", 1)[1] for line in lines] == [
        "handler.py",
        "samples.jsonl:2",
        "samples.jsonl:3",
        "samples.jsonl:5",
    ]
    assert "no function predict()" in lines[0]
    assert "#/instances/0/age" in lines[2]
