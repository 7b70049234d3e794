"""The bundle is the folder: what goes in, what stays out, under which names, and how large it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.domain.errors import ArtifactCorrupt
from flows.steps.bundling import contents, lay_out, refuse_too_large

FILES = (
    *(
        "model.yaml",
        "handler.py",
        "samples.jsonl",
        "helper.py",
        "labels.txt",
        "onnx/model.onnx",
        "onnx/model.onnx.data",
    ),
    *(
        "__pycache__/helper.cpython-311.pyc",
        "onnx/__pycache__/x.pyc",
        ".git/config",
        ".venv/bin/python",
        ".env",
    ),
    *("manifest.json", "notes/plan.md", "notes/keep.md", "raw.csv", "deep/manifest.json"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "churn"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_everything_below_the_folder_goes_in(folder: Path) -> None:
    found = contents(folder, (), None)
    assert set(found.files) == {
        *FILES[:7],
        *("notes/plan.md", "notes/keep.md", "raw.csv", "deep/manifest.json"),
    }
    assert set(found.left_out) == {"__pycache__/", "onnx/__pycache__/", ".git/", ".venv/", ".env"}
    lines = found.lines()
    assert lines[0].startswith("bundle: 11 files, ")
    assert "left out: " in lines[1]
    assert ".git/" in lines[1]


def test_the_ignore_file_has_the_syntax_of_git(folder: Path) -> None:
    (folder / ".modelserveignore").write_text("# rows\n*.csv\nnotes/*\n!notes/keep.md\n!.env\n")
    found = contents(folder, (), None)
    assert {"notes/keep.md", ".env"} <= set(found.files)
    assert {"raw.csv", "notes/plan.md", ".modelserveignore"}.isdisjoint(found.files)
    assert {"raw.csv", "notes/plan.md"} <= set(found.left_out)


def test_the_only_artifact_takes_the_name_that_the_runtime_wants(folder: Path, tmp_path: Path) -> None:
    trained = tmp_path / "run-17.pt"
    trained.write_text("weights")
    assert contents(folder, [trained], "model.pt").files["model.pt"] == trained
    assert contents(folder, [trained], None).files["run-17.pt"] == trained


def test_several_artifacts_and_folders_keep_their_names(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "export" / "saved_model"
    (saved / "variables").mkdir(parents=True)
    (saved / "saved_model.pb").write_text("graph")
    (saved / "variables" / "variables.index").write_text("index")
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("words")
    files = contents(folder, [saved, vocabulary], "saved_model").files
    assert files["saved_model/saved_model.pb"] == saved / "saved_model.pb"
    assert files["saved_model/variables/variables.index"].read_text() == "index"
    assert files["vocabulary.txt"] == vocabulary
    assert contents(folder, [saved], "tf").files["tf/saved_model.pb"] == saved / "saved_model.pb"

    twin = tmp_path / "other" / "vocabulary.txt"
    twin.parent.mkdir()
    twin.write_text("other words")
    with pytest.raises(ArtifactCorrupt, match=r"two artifacts are called 'vocabulary\.txt'"):
        contents(folder, [vocabulary, twin], None)
    with pytest.raises(ArtifactCorrupt, match="no such file"):
        contents(folder, [tmp_path / "missing.pt"], None)


def test_what_a_training_has_written_beside_its_file_belongs_to_it(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.pt", "samples.jsonl", "labels.txt"):
        (run / name).write_text("of the run")
    files = contents(folder, [run / "model.pt"], "model.pt").files
    assert files["samples.jsonl"].read_text() == "of the run"
    assert files["labels.txt"].read_text() == "labels.txt"


def test_links_do_not_carry_foreign_files_along(folder: Path, tmp_path: Path) -> None:
    (folder / "same.txt").symlink_to(folder / "labels.txt")
    found = contents(folder, (), None)
    lay_out(found, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "same.txt").is_symlink()
    assert (tmp_path / "bundle" / "same.txt").read_text() == "labels.txt"
    (tmp_path / "secret").write_text("secret")
    (folder / "stolen.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactCorrupt, match=r"stolen\.txt: a link that leaves the folder"):
        contents(folder, (), None)
    (folder / ".modelserveignore").write_text("stolen.txt\n")
    assert "stolen.txt" not in contents(folder, (), None).files


def test_a_bundle_over_the_limit_is_refused_by_name(folder: Path) -> None:
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(3_000_000_000)
    found = contents(folder, (), None)
    refuse_too_large(found, 4_000_000_000)
    with pytest.raises(
        ArtifactCorrupt, match=r"3\.0 GB, more than the limit of 1\.0 GB .* weights\.bin \(3\.0 GB\)"
    ):
        refuse_too_large(found, 1_000_000_000)


def test_memory_does_not_grow_with_the_folder(folder: Path, tmp_path: Path) -> None:
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(400_000_000)
    code = """
import resource, sys
from pathlib import Path
from flows.adapters.artifacts import ArtifactStore
from flows.steps.bundling import contents, lay_out
folder, work = Path(sys.argv[1]), Path(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lay_out(contents(folder, (), None), work / "bundle")
ArtifactStore((work / "store").as_uri()).put_bundle(work / "bundle", "churn", 1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000, "kilobytes"
