"""The wheel works where the repository is not: all that the code reads beside itself is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("flows", "serving", "infra/images", "infra/local", "k8s/release", "monitoring/rules")
FILES = (
    "constraints.txt",
    "prefect.yaml",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy, so that the checkout stays as it is."""
    home = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *INPUTS, *FILES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        target = home / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(home), str(home / "source")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = home.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip would put into `site-packages`."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path | str, empty: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """From an empty folder, with the wheel's content and this Python's packages; not the checkout."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MODELSERVE_")}
    environment |= {"PYTHONPATH": str(installed), "MODELSERVE_STATE": str(empty.parent / "state")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=empty, env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_every_file_beside_the_code_that_is_read_is_in_the_wheel(wheel: Path) -> None:
    """Found in the code itself: each path that it joins to the project's folder, each template."""
    names = set(zipfile.ZipFile(wheel).namelist())
    carried = {name.removeprefix("flows/project/") for name in names if name.startswith("flows/project/")}
    joined = re.compile(
        r"(?:project\(\)|settings\.repository|_settings\.repository|\broot|\bhome)((?:\s*/\s*\"[^\"]+\")+)"
    )
    read: set[str] = set()
    for source in [*ROOT.glob("flows/**/*.py"), *ROOT.glob("serving/**/*.py")]:
        text = source.read_text(encoding="utf-8")
        for parts in joined.findall(text):
            path = "/".join(re.findall(r'"([^"]+)"', parts))
            if (ROOT / path).exists():
                read.add(path)
        read |= {f"infra/local/{name}" for name in re.findall(r'"([\w.]+\.j2)"', text)}
    assert {"prefect.yaml", "pyproject.toml", "infra/local", "k8s/release", "monitoring/rules"} <= read
    assert len([path for path in read if path.endswith(".j2")]) >= 6
    for path in sorted(read):
        files = [path] if (ROOT / path).is_file() else _tracked(path)
        assert files, path
        assert [file for file in files if file not in carried] == [], f"{path} is not whole in the wheel"


def test_code_recipes_and_the_example_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [file for file in (*_tracked("flows"), *_tracked("serving")) if file not in names] == []
    assert not [name for name in names if name.split("/")[0] == "tests"]


def _tracked(folder: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "--", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("module", ["flows.terminal.cli:main", "serving"])
def test_its_ways_in_start_from_an_empty_folder(installed: Path, empty: Path, module: str) -> None:
    if ":" in module:
        entry = (installed / "modelserveai-0.1.0.dist-info" / "entry_points.txt").read_text()
        assert f"modelserve = {module}" in entry
        code = "import sys; from flows.terminal.cli import main; sys.argv[0] = 'modelserve'; sys.exit(main())"
        done = run(installed, empty, "-c", code, "--help")
        assert "promote" in done.stdout
    else:
        done = run(installed, empty, "-m", module, "--help")
    assert done.returncode == 0, done.stderr
    assert list(empty.iterdir()) == [], "nothing is left behind"


WHAT_IT_READS = """
import flows, sys
from pathlib import Path
from flows import wiring
from flows.adapters.images.recipe import ImageRecipe
from flows.adapters.kubernetes.skeletons import read_skeletons
from flows.adapters.stack import parts
from flows.places import PACKAGES, project
from flows.settings import Settings

settings = Settings()
assert Path(flows.__file__).is_relative_to(sys.argv[1]), flows.__file__
assert project() == PACKAGES / "flows" / "project" == settings.repository
assert "deployment" in read_skeletons()
server = ImageRecipe.of_project(project(), packages=PACKAGES)
for recipe in (server, ImageRecipe.of_flows(project(), PACKAGES)):
    for path in (recipe.containerfile, recipe.package, recipe.constraints, recipe.base_recipe / "base.sh"):
        assert path.exists(), path
    assert all(path.exists() for path, _ in recipe.beside)
    assert recipe.dependencies
wiring.model_packages(settings), wiring.image_builder(settings), wiring.flows_image_builder(settings)
parts._prometheus(settings).configure()
written = (settings.state / "prometheus" / "prometheus.yml").read_text()
assert "flows/project/monitoring/rules/slo.yml" in written, written
"""


def test_templates_rules_manifests_and_recipes_are_found_in_it(installed: Path, empty: Path) -> None:
    done = run(installed, empty, "-c", WHAT_IT_READS, str(installed))
    assert done.returncode == 0, done.stderr


MODELSERVE = """
import sys
# Not by PYTHONPATH: what it starts has to find the server by itself, as after an installation.
sys.path.insert(0, sys.argv.pop(1))
from flows.terminal.cli import main
main()
"""


def test_a_model_is_drafted_and_checked_from_an_empty_folder(installed: Path, empty: Path) -> None:
    features, labels = load_iris(return_X_y=True, as_frame=True)
    joblib.dump(LogisticRegression(max_iter=500).fit(features, labels), empty / "model.joblib")
    command = ("-P", "-c", MODELSERVE, str(installed))
    drafted = run("", empty, *command, "init", "iris", "--from", "model.joblib", "--trust-pickle")
    assert drafted.returncode == 0, drafted.stdout + drafted.stderr
    assert (empty / "iris" / "samples.jsonl").read_text().count('"predictions"') == 3
    checked = run("", empty, *command, "check", "iris")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "iris: nothing is wrong" in checked.stdout


def test_the_version_is_the_projects(wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert wheel.name.startswith(f"modelserveai-{version}-")
