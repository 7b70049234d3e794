"""`init`: a trained file becomes a folder that `check` and `register` take.

The file is looked at and served in the environment that its release will have, so that the answers in
`samples.jsonl` are those of the server. The folder appears when all of it is right.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.adapters.packages import LOCK
from flows.adapters.servers import ask, verify
from flows.domain.errors import SpecInvalid, VerificationFailed
from flows.domain.release import MODEL_NAME
from flows.domain.spec import ModelSpec, parse_spec
from flows.domain.verification import Sample, parse_samples
from flows.settings import Settings
from flows.steps.recognising import Recognised, recognise
from flows.steps.registration import check_folder, require_samples
from flows.steps.trial import served
from flows.wiring import model_packages

Say = Callable[[str], None]
ANSWER_SECONDS = 60.0
LOOK_SECONDS = 900.0
TOLERANCE = 1e-4
"""Of the largest number: what another machine may round differently."""
WRITTEN = ("model.yaml", "samples.jsonl")


def make_folder(
    settings: Settings,
    name: str,
    source: Path,
    into: Path,
    say: Say,
    *,
    trust_pickle: bool = False,
    inputs: Sequence[str] = (),
) -> bool:
    """Write the folder `into` for the model `name` out of the file or folder `source`.

    `inputs`: what the model takes (`NAME:TYPE:SHAPE`), where its file does not tell. False when a person
    has to
    complete handler.py first. Raises SpecInvalid, PackagesRefused in one line; then nothing is written.
    """
    if not MODEL_NAME.fullmatch(name):
        raise SpecInvalid(f"{name!r}: a name is lower-case letters, digits and dashes, 40 characters at most")
    _refuse_overwriting(into, source)
    recognised = recognise(source)
    if recognised.pickle and not trust_pickle:
        raise SpecInvalid(
            f"{source}: reading it can run anything that its maker put into it; add --trust-pickle if "
            "that was you, or "
            "save it in a format that holds no code (skops, ONNX)"
        )
    source = source.absolute()
    with _staged(settings) as bundle:
        requirements = _requirements(settings, recognised, source, say)
        found = _looked(settings, recognised, source, bundle, requirements, trust_pickle, inputs)
        if requirements:
            (bundle / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        say(f"{source.name}: {found['what']}")
        _copy(source, bundle / source.name)
        for file in found["files"]:
            _copy(source.parent / file, bundle / file)
        if found["handler"]:
            (bundle / "handler.py").write_text(found["handler"])
            (bundle / LOCK).unlink()
            _move(bundle, into)
            say(f"{into / 'handler.py'}: complete build(), which the weights do not tell")
            say(f"then: modelserve init {name} --from {into / source.name} --into {into}")
            return False
        for line in found["guessed"]:
            say(f"guessed: {line}")
        text = model_yaml(name, found)
        (bundle / "model.yaml").write_text(text)
        spec = parse_spec(text, str(into / "model.yaml"))
        count = _record(settings, bundle, into, spec, found["rows"])
        check_folder(bundle, into)
        require_samples(bundle, into)
        # Locked again by `register`, whose day may have newer packages.
        (bundle / LOCK).unlink()
        (bundle / "manifest.json").unlink()
        written = _move(bundle, into)
    say(f"wrote {', '.join(written)} in {into}; the answers to {count} rows are the model's own")
    return True


def model_yaml(name: str, found: dict[str, Any]) -> str:
    """The text of a model.yaml for what was found in a file, with a word on each section."""
    serving = {"runtime": found["runtime"], **found["serving"]}
    return TEMPLATE.format(
        name=name,
        what=json.dumps(found["what"]),
        inputs=_columns(found["inputs"]),
        outputs=_columns(found["outputs"]),
        serving="\n".join(f"  {key}: {_flow(value)}" for key, value in serving.items()),
    )


TEMPLATE = """\
# Written by `modelserve init`, yours from here on. `modelserve check FOLDER` says what is wrong with it.
name: {name}
description: {what}

# What clients send and get, a column a line. type: number, integer, boolean or string; `shape`: an array.
# `minimum` and `maximum`, where you know them, refuse a wrong request and convict a release that goes beyond.
# `nullable: true` lets a number be null; `personal: hash` or `drop` keeps it out of samples for drift checks.
signature:
  inputs:
{inputs}
  outputs:
{outputs}

# How the model server runs it.
serving:
{serving}

# What one server of it asks for, and how many there are.
resources: {{cpu: "1", memory: 1Gi, replicas: 1}}

# Findings in its image that stop a release; `mode: record` only reports them.
scan: {{mode: require, severity: [HIGH, CRITICAL]}}

# How soon a release gets all of the traffic (quick, standard or careful: `modelserve promote --plan` says in
# minutes what each would take), and the greatest harm accepted, as a share of requests.
promotion:
  pace: standard
  max_absolute: 0.01
"""


def _columns(columns: list[dict[str, Any]]) -> str:
    return "\n".join(f"    - {_flow(column)}" for column in columns)


def _flow(value: Any) -> str:
    return yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
    ).removesuffix("...\n").strip()  # fmt: skip


@contextmanager
def _staged(settings: Settings) -> Iterator[Path]:
    place = settings.state / "staging"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="init-", dir=place) as name:
        bundle = Path(name) / "bundle"
        bundle.mkdir()
        yield bundle


def _refuse_overwriting(into: Path, source: Path) -> None:
    if into.exists() and not into.is_dir():
        raise SpecInvalid(f"{into}: a file of that name is there; name another folder with --into")
    for name in WRITTEN:
        if (into / name).exists():
            raise SpecInvalid(
                f"{into / name}: is there already and is not overwritten; name another folder with --into"
            )
    there = into / source.name
    if there.exists() and not there.samefile(source):
        raise SpecInvalid(f"{there}: another file of that name is there; name another folder with --into")


def _requirements(settings: Settings, recognised: Recognised, source: Path, say: Say) -> list[str]:
    """What the model's packages are said to be: in the file beside it, or in the folder that MLflow has
    written."""
    logged = source / "requirements.txt"
    if recognised.kind == "mlflow" and logged.is_file():
        kept, refused = model_packages(settings).fitting(logged, recognised.packages)
        for one in refused:
            say(f"requirements.txt: without {one}")
        return kept
    path = source.parent / "requirements.txt"
    if source.is_file() and path.is_file():
        say(f"packages: those of {path}")
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return []


def _looked(
    settings: Settings,
    recognised: Recognised,
    source: Path,
    bundle: Path,
    requirements: list[str],
    trust_pickle: bool,
    inputs: Sequence[str],
) -> dict[str, Any]:
    """What the file tells, in an environment with the packages that it needs; those are added to
    `requirements`."""
    packages = model_packages(settings)
    report = bundle.with_name("report.json")
    for _ in range(2):
        if requirements:
            (bundle / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        lock = packages.lock(bundle, source.parent, recognised.packages)
        (bundle / LOCK).write_text(lock.text)
        command = [packages.python(lock), "-m", "serving", "look", recognised.kind, str(source), str(report)]
        command += ["--trust-pickle"] if trust_pickle else []
        command += [part for text in inputs for part in ("--input", text)]
        try:
            done = subprocess.run(
                command, cwd=settings.repository, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=LOOK_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SpecInvalid(f"{source}: nothing was found in it within {LOOK_SECONDS:.0f} s") from error
        if done.returncode < 0:
            raise SpecInvalid(
                f"{source}: reading it ended by signal {-done.returncode}; is it damaged, or larger than "
                "the memory?"
            )
        if done.returncode:
            raise SpecInvalid(_said(done.stderr))
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        if "needs" not in found:
            return found
        requirements.append(found["needs"])
    raise SpecInvalid(_said(done.stderr))


def _said(output: str) -> str:
    """The last line: what libraries complain of stands before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def _record(settings: Settings, bundle: Path, into: Path, spec: ModelSpec, rows: list[dict[str, Any]]) -> int:
    """Write samples.jsonl with what a server answers to the rows; how many there are."""
    path = bundle / "samples.jsonl"
    # The server warms up with them; their answers are known afterwards.
    path.write_text("".join(_line({"instances": [one], "predictions": []}) for one in rows))
    lines = []
    with served(settings, bundle, into, spec) as (url, _):
        for number, instance in enumerate(rows, 1):
            try:
                status, body = ask(url, Sample([instance], None, 200, 0.0, number), ANSWER_SECONDS)
            except httpx.HTTPError as error:
                raise SpecInvalid(
                    f"{into}: a made-up row is not answered ({type(error).__name__}: {error})"
                ) from error
            if status == 200 and isinstance(body, dict):
                found = body["predictions"]
                lines.append(
                    _line({"instances": [instance], "predictions": found, "tolerance": _tolerance(found)})
                )
            reason = body.get("detail") if isinstance(body, dict) else body
        if not lines:
            raise SpecInvalid(f"{into}: the model answers none of the rows made up for it ({reason})")
        path.write_text("".join(lines))
        try:
            return verify(url, spec.name, parse_samples("".join(lines), str(into / path.name)))
        except VerificationFailed as error:
            raise SpecInvalid(
                f"{into}: equal rows get different answers ({error}); such a model needs a handler"
            ) from error


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _tolerance(predictions: Any) -> float:
    largest = max((abs(number) for number in _numbers(predictions)), default=0.0)
    return float(f"{TOLERANCE * max(largest, 1e-2):.0e}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _copy(source: Path, target: Path) -> None:
    """A copy: a link would change with what the user does to the original."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _move(bundle: Path, into: Path) -> list[str]:
    """Put the files of `bundle` into `into`, the specification last; those that are there stay. What was
    written."""
    fresh = not into.exists()
    target = into if not fresh else Path(tempfile.mkdtemp(dir=_parent(into), prefix=f".{into.name}-"))
    written = sorted(
        (entry.name for entry in bundle.iterdir()), key=lambda name: (name == "model.yaml", name)
    )
    try:
        for name in written:
            if not (target / name).exists():
                _copy(bundle / name, target / name)
        if fresh:
            target.chmod(0o755)
            target.rename(into)
    except OSError as error:
        if fresh:
            shutil.rmtree(target, ignore_errors=True)
        else:
            for name in WRITTEN:
                (into / name).unlink(missing_ok=True)
        raise SpecInvalid(f"{into}: cannot be written ({error.strerror})") from error
    return written


def _parent(into: Path) -> Path:
    into.parent.mkdir(parents=True, exist_ok=True)
    return into.parent
