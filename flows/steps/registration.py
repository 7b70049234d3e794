"""`register`: a model's folder and a trained file become an immutable release."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.adapters.packages import LOCK
from flows.domain.errors import ArtifactCorrupt, ReleaseUnknown, SpecInvalid
from flows.domain.release import Release
from flows.domain.signature import narrowed
from flows.domain.spec import ModelSpec, parse_spec
from flows.domain.verification import parse_samples
from flows.settings import Settings
from flows.steps.bundling import contents, lay_out, refuse_too_large
from flows.steps.trial import try_bundle
from flows.wiring import ControlPlane, model_packages

if TYPE_CHECKING:
    import pandas

Say = Callable[[str], None]


def register_release(
    plane: ControlPlane,
    folder: Path,
    artifacts: Sequence[Path] | Path = (),
    version: int | None = None,
    training: Path | None = None,
    holdout: Path | None = None,
    say: Say = lambda _line: None,
    *,
    tried: bool = False,
) -> Release:
    """Check a model's folder, put its bundle into the artifact store, add the release to the registry.

    `folder` holds `model.yaml`, `samples.jsonl` and whatever else the model needs (`flows.steps.bundling`);
    `artifacts` are trained files or folders that lie elsewhere;
    `training` the rows it was trained on (Parquet), from which the reference of later drift checks is made;
    `holdout` rows that it has not learned, with its predictions and their outcomes: how good it is, and what
    its answers look like. It may be the same file, when the predictions in it are out of fold.
    `tried`: a server is started from it first and asked the samples (`flows.steps.trial`).
    Raises SpecInvalid (file, key, what is allowed), ArtifactCorrupt, PackagesRefused, ReleaseExists. The same
    content under the same version is the same release.
    """
    spec, text = read_spec(folder)
    if holdout is not None and training is None:
        raise SpecInvalid("a holdout needs the training rows beside it; give both, or neither")
    chosen = version or _next_version(plane, spec.name)
    rows = [path for path in (training, holdout) if path is not None]
    given = [artifacts] if isinstance(artifacts, Path) else list(artifacts)
    with checked_bundle(plane.settings, folder, given, rows, say, tried=tried) as bundle:
        if training is not None:
            _write_reference(training, holdout, spec, bundle / "reference.json")
        uri, sha256 = plane.artifacts.put_bundle(bundle, spec.name, chosen)
    for warning in _narrower_than_the_stable(plane, spec, chosen):
        say(f"warning: {warning}")
    return plane.registry.register(Release(spec.name, chosen, uri, sha256), text)


def _narrower_than_the_stable(plane: ControlPlane, spec: ModelSpec, version: int) -> list[str]:
    """What clients of the release that serves now would miss."""
    try:
        stable = plane.registry.standing(spec.name).stable
        if stable is None or stable.version == version:
            return []
        served = parse_spec(plane.registry.spec(spec.name, stable.version), f"{stable.name}/model.yaml")
    except (ReleaseUnknown, SpecInvalid):  # the model's first release, or a spec of before
        return []
    return [f"narrower than {stable.name}: {change}" for change in narrowed(served.signature, spec.signature)]


@contextmanager
def checked_bundle(
    settings: Settings,
    folder: Path,
    artifacts: Sequence[Path],
    rows: Sequence[Path],
    say: Say,
    *,
    tried: bool,
) -> Iterator[Path]:
    """The files of a bundle in a folder that goes again, checked for all that can be known before.

    Raises what `register_release` does.
    """
    spec, _ = read_spec(folder)
    _require_personal_key(settings, spec, folder)
    found = contents(folder, artifacts, model_file(spec), rows)
    refuse_too_large(found, settings.bundle_limit_bytes)
    for line in found.lines():
        say(line)
    # On the disk of the state: the temporary folder lies in memory on many machines.
    place = settings.state / "staging"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=place) as name:
        bundle = Path(name) / "bundle"
        lay_out(found, bundle)
        check_folder(bundle, folder)
        require_samples(bundle, folder)
        _lock_packages(settings, bundle, folder, spec, say)
        if tried:
            say(try_bundle(settings, bundle, folder, spec))
        yield bundle


def read_spec(folder: Path) -> tuple[ModelSpec, str]:
    """The folder's spec, checked by the flows, and its text. Raises SpecInvalid."""
    path = folder / "model.yaml"
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecInvalid(f"{path}: {error.strerror}; a model's folder needs a model.yaml") from error
    return parse_spec(text, str(path)), text


def check_folder(folder: Path, shown: Path | None = None) -> None:
    """Let the server check the folder, its section and its files. Raises SpecInvalid; `shown` is the folder's
    name in messages."""
    # In a process of its own: the two packages never import each other.
    done = subprocess.run(
        [sys.executable, "-m", "serving", "check", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        problems = (done.stdout.strip() or done.stderr.strip()).splitlines()
        raise SpecInvalid("; ".join(problems[-5:]).replace(str(folder), str(shown or folder)))


def require_samples(bundle: Path, shown: Path) -> None:
    """A bundle whose answers nobody knows could never be promoted: SpecInvalid says what to do."""
    path = bundle / "samples.jsonl"
    if not path.is_file():
        raise SpecInvalid(
            f"{shown / path.name}: not there; only a release that answers known requests is promoted; write "
            'a line {"instances": [{…}], "predictions": [{…}], "tolerance": 0.001} with an answer you know'
        )
    samples = parse_samples(path.read_text(), str(shown / path.name))
    if all(sample.status != 200 for sample in samples):
        raise SpecInvalid(
            f"{shown / path.name}: refusals only; add a request that is answered, with its predictions"
        )


def _require_personal_key(settings: Settings, spec: ModelSpec, shown: Path) -> None:
    """A server without the key would not start, after the image was built and scanned: SpecInvalid now."""
    columns = (*spec.signature.inputs, *spec.signature.outputs)
    hashed = [column.name for column in columns if column.personal == "hash"]
    if hashed and not settings.personal_hashes:
        raise SpecInvalid(
            f"{shown / 'model.yaml'}: personal: hash of {', '.join(hashed)} needs a key, and servers here "
            "have none (MODELSERVE_PERSONAL_HASHES=false); give them SERVING_PERSONAL_KEY, or mark them drop"
        )


def model_file(spec: ModelSpec) -> str | None:
    """`serving.runtime.file`, where the spec has one."""
    runtime = spec.serving.get("runtime")
    named = runtime.get("file") if isinstance(runtime, dict) else None
    return named if isinstance(named, str) else None


def _lock_packages(settings: Settings, bundle: Path, shown: Path, spec: ModelSpec, say: Say) -> None:
    """Resolve what the model asks for, once: image and process install what stands in the bundle."""
    runtime = spec.serving.get("runtime")
    kind = str(runtime.get("kind")) if isinstance(runtime, dict) else ""
    if str(model_file(spec)).endswith(".safetensors"):
        kind = "safetensors"
    listed = "requirements.txt"
    if kind == "mlflow" and not (bundle / listed).is_file():
        listed = f"{model_file(spec)}/{listed}"  # what MLflow has written beside the model
    lock = model_packages(settings).lock(bundle, shown, kind, listed)
    (bundle / LOCK).unlink(missing_ok=True)
    (bundle / LOCK).write_text(lock.text)
    if lock.lines:
        names = ", ".join(line.split(" ", 1)[0] for line in lock.lines)
        say(f"packages, beside the server's own: {names}")


def _next_version(plane: ControlPlane, model: str) -> int:
    newest = plane.registry.releases(model, last=1)
    return newest[0].version + 1 if newest else 1


def _write_reference(training: Path, holdout: Path | None, spec: ModelSpec, target: Path) -> None:
    from flows.domain.drift.profile import make_profile

    rows = _rows(training)
    unlearned = None if holdout is None else _rows(holdout)
    profile = make_profile(rows, spec.signature, spec.drift, model=spec.name, holdout=unlearned)
    target.unlink(missing_ok=True)  # it may be a link to a file of the folder
    target.write_text(profile.to_json())


def _rows(path: Path) -> pandas.DataFrame:
    """ArtifactCorrupt when it cannot be read as Parquet."""
    import pandas
    import pyarrow

    try:
        return pandas.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactCorrupt(f"{path} cannot be read as Parquet ({reason}); write it again") from error
