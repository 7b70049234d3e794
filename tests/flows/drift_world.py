"""A model in service with a reference, a real Redis, and traffic: where drift checks are tested."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis

from flows.domain.drift.profile import make_profile
from flows.domain.promotion import State
from flows.domain.release import Release
from flows.domain.spec import parse_spec
from flows.wiring import ControlPlane

SPEC = """
name: paint
signature:
  inputs:
    - {{name: width, type: number}}
    - {{name: colour, type: string}}
  outputs: [{{name: price, type: number}}]
drift: {{window: 1h, min_rows: 50, consequence: {consequence}, training: train/paint}}
"""
HOUR = 3600.0
NOW = 1_800_000_000.0


def run_redis(folder: Path) -> Iterator[str]:
    """The URL of a real server, stopped by its pid afterwards."""
    program = shutil.which("redis-server")
    assert program, "redis-server is needed: apt-get install redis-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with redis.Redis(port=port) as client:
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


def rows(count: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    width = random.normal(10, 2, count) + shift
    colour = random.choice(["red", "blue"], count, p=[0.7, 0.3])
    return pd.DataFrame({"width": width, "colour": colour, "price": 3 * width})


class World:
    """A model in service, and traffic."""

    def __init__(self, plane: ControlPlane, folder: Path, redis_url: str) -> None:
        settings = plane.settings.model_copy(update={"redis_url": redis_url})
        self.plane = replace(plane, settings=settings)
        self.folder = folder
        self.client = redis.Redis.from_url(redis_url)
        self.client.flushall()

    def serve(
        self,
        model: str = "paint",
        consequence: str = "alert",
        reference: bool | str = True,
        version: int = 1,
        training: int = 3000,
        spec: str = "",
    ) -> None:
        text = spec or SPEC.format(consequence=consequence).replace("paint", model)
        bundle = self.folder / f"{model}-{version}"
        bundle.mkdir(parents=True)
        (bundle / "model.yaml").write_text(text)
        if reference:  # that of another model, if it is a name
            made = parse_spec(text, "model.yaml")
            of = reference if isinstance(reference, str) else model
            profile = make_profile(rows(training, 1), made.signature, made.drift, model=of)
            (bundle / "reference.json").write_text(profile.to_json())
        uri, sha256 = self.plane.artifacts.put_bundle(bundle, model, version)
        release = self.plane.registry.register(Release(model, version, uri, sha256), text)
        self.plane.platform.start(release, parse_spec(text, "model.yaml"))
        promotion = self.plane.registry.begin(model, version, f"run-{model}-{version}", 3600, 60)
        with self.plane.registry.turn(model) as turn:
            turn.crown(promotion)
            turn.end(promotion, State.PROMOTED, "certified")

    def send(self, frame: pd.DataFrame, model: str = "paint", hours: float = 6, version: int = 1) -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for place, row in enumerate(frame.to_dict("records")):
                sample: dict[str, Any] = {
                    "release": f"{model}-v{version}",
                    "request_id": f"r{place}",
                    "row": 0,
                    "at": NOW + place * hours * HOUR / len(frame),
                    "features": {"width": row["width"], "colour": row["colour"]},
                    "prediction": {"price": row["price"]},
                }
                pipeline.xadd(f"samples:{model}", {"data": json.dumps(sample)})
            pipeline.execute()
