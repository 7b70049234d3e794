"""Starts a server from a bundle before anybody registers it, and asks it the golden requests.

In the environment that the bundle's lock makes, so that a package that is missing is found here and not in an
image that has been built and scanned.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from flows.adapters.local import loopback
from flows.adapters.packages import LOCK, Lock
from flows.adapters.servers import verify
from flows.domain.errors import SpecInvalid, VerificationFailed
from flows.domain.logs import cause
from flows.domain.spec import ModelSpec
from flows.domain.verification import parse_samples
from flows.settings import LOOPBACK, Settings
from flows.wiring import model_packages

POLL_SECONDS = 0.1
STOP_SECONDS = 20.0
GPU = Path("/dev/nvidiactl")


def try_bundle(settings: Settings, bundle: Path, shown: Path, spec: ModelSpec) -> str:
    """Serve the bundle's folder on a port of its own and play `samples.jsonl`; a sentence that tells of it.

    `shown` is the folder's name in messages. Raises SpecInvalid in one line: the server does not start, or
    answers otherwise than the samples say; PackagesRefused when the environment cannot be made.
    """
    if spec.resources.pool == "gpu" and not GPU.exists():
        return "not tried here: the model wants a GPU, and this machine has none"
    samples = parse_samples((bundle / "samples.jsonl").read_text(), str(shown / "samples.jsonl"))
    with served(settings, bundle, shown, spec) as (url, seconds):
        try:
            count = verify(url, spec.name, samples)
        except VerificationFailed as error:
            raise SpecInvalid(f"{shown}: {error}") from error
    return f"tried: a server was ready after {seconds:.1f} s and answered {count} golden requests as they say"


@contextmanager
def served(settings: Settings, bundle: Path, shown: Path, spec: ModelSpec) -> Iterator[tuple[str, float]]:
    """A server of the bundle's folder, in the environment of its lock: its URL, and the seconds it took to
    start.

    Raises SpecInvalid in one line when it does not start.
    """
    python = model_packages(settings).python(Lock((bundle / LOCK).read_text(encoding="utf-8")))
    sealed = subprocess.run(
        [python, "-m", "serving", "seal", str(bundle)],
        cwd=settings.repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if sealed.returncode:
        raise SpecInvalid(f"{shown}: cannot be sealed ({_last(sealed.stderr, bundle, shown)})")
    log = bundle.with_name(f"{bundle.name}.log")
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    variables = {
        "SERVING_BUNDLE": str(bundle),
        "SERVING_HOST": LOOPBACK,
        "SERVING_PORT": str(port),
        "SERVING_DRAIN_SECONDS": "0",
    }
    began = time.monotonic()
    try:
        with log.open("w") as output:
            server = subprocess.Popen(
                [python, "-m", "serving", "serve"],
                cwd=settings.repository, env={**os.environ, **variables}, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            url = f"http://{LOOPBACK}:{port}"
            _await(server, url, log, began + spec.resources.start_seconds, bundle, shown)
            yield url, time.monotonic() - began
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        log.unlink(missing_ok=True)


def _await(
    server: subprocess.Popen[bytes], url: str, log: Path, deadline: float, bundle: Path, shown: Path
) -> None:
    while not _ready(url):
        if server.poll() is not None:
            raise SpecInvalid(f"the model does not start: {_last(log.read_text(), bundle, shown)}")
        if time.monotonic() > deadline:
            raise SpecInvalid(
                f"{shown}: no server was ready in time (resources.start_seconds); its log says: "
                f"{_last(log.read_text(), bundle, shown)}"
            )
        time.sleep(POLL_SECONDS)


def _ready(url: str) -> bool:
    try:
        return loopback.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _last(output: str, bundle: Path, shown: Path) -> str:
    """Why a server ended, about the folder that the user knows."""
    said = cause(output.splitlines()) or "nothing was said"
    return said.replace(str(bundle), str(shown))[:600]
