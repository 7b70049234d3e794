"""Processes as users start them: start-up, failures to start, draining, workers that die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.serving.model_bundles import affine, people, person, write_bundle
from tests.serving.server_runs import ServerProcess, process

BODY = {"instances": [person()]}


def test_probes_answer_before_the_model_is_there(tmp_path: Path) -> None:
    slow = """
    import time

    def load(folder, device):
        time.sleep(1.5)

    def predict(model, rows):
        return rows
    """
    bundle = write_bundle(
        tmp_path, serving={"runtime": {"kind": "handler"}}, files={"handler.py": slow}, name="slow"
    )
    with process(bundle, ready=False) as server:
        seen = set()
        until = time.monotonic() + 10
        while time.monotonic() < until and server.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                seen.add(httpx.get(server.url + "/healthz").status_code)
                seen.add(f"ready {httpx.get(server.url + '/readyz').status_code}")
                predict = httpx.post(server.url + "/predict", json=BODY)
                seen.add(f"predict {predict.status_code}")
                if predict.status_code == 503:
                    assert predict.headers["retry-after"] == "1"
                    break
            time.sleep(0.02)
        assert seen == {200, "ready 503", "predict 503"}
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 1.5
        assert "stopped while starting" in server.log


def test_a_bundle_that_was_altered_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle = affine(tmp_path)
    (bundle / "handler.py").write_text("raise SystemExit('must never run')\n")
    with process(bundle, ready=False) as server:
        assert server.wait_exit() == 1
        [line] = [json.loads(line) for line in server.log.splitlines() if "cannot start" in line]
        assert "handler.py: sha256 is" in line["message"]
        assert "Traceback" not in server.log


def test_another_manifest_than_the_registered_one_is_refused(tmp_path: Path) -> None:
    with process(affine(tmp_path), ready=False, bundle_sha256="0" * 64) as server:
        assert server.wait_exit() == 1
        assert "registered is 0000" in server.log


def test_a_missing_setting_is_named() -> None:
    with process("", ready=False) as server:
        assert server.wait_exit() == 2
        assert "SERVING_BUNDLE" in server.log


async def drive(
    servers: list[ServerProcess], seconds: float, after: float, action: object
) -> tuple[Counter[str], list[float]]:
    """Load as a load balancer spreads it: only to servers whose readiness probe passes; what came of it."""
    outcomes: Counter[str] = Counter()
    latencies: list[float] = []
    ready = dict.fromkeys((server.url for server in servers), True)
    until = time.monotonic() + seconds

    async def probe(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            for url in ready:
                try:
                    ready[url] = (await client.get(url + "/readyz")).status_code == 200
                except httpx.TransportError:
                    ready[url] = False
            await asyncio.sleep(0.1)

    async def ask(client: httpx.AsyncClient, turn: int) -> None:
        while time.monotonic() < until:
            choice = [url for url, up in ready.items() if up]
            turn += 1
            started = time.monotonic()
            try:
                answer = await client.post(choice[turn % len(choice)] + "/predict", json=BODY)
                outcomes[str(answer.status_code)] += 1
            except httpx.TransportError as error:
                outcomes[type(error).__name__] += 1
            latencies.append(time.monotonic() - started)

    async with httpx.AsyncClient(timeout=10) as client:
        tasks = [asyncio.create_task(ask(client, turn)) for turn in range(8)]
        tasks.append(asyncio.create_task(probe(client)))
        await asyncio.sleep(after)
        action()  # type: ignore[operator]
        await asyncio.gather(*tasks)
    return outcomes, latencies


def test_draining_under_load_loses_no_request(tmp_path: Path) -> None:
    bundle = people(tmp_path)
    with process(bundle, drain_seconds=3) as leaving, process(bundle, drain_seconds=3) as staying:
        outcomes, _ = asyncio.run(
            drive([leaving, staying], 3.0, 0.8, lambda: leaving.process.send_signal(signal.SIGTERM))
        )
        code = leaving.wait_exit()
        print(f"drain under load: {sum(outcomes.values())} requests, {dict(outcomes)}, exit code {code}")
        assert code == 0
        assert set(outcomes) == {"200"}
        assert outcomes["200"] > 200


def test_requests_under_way_are_finished(tmp_path: Path) -> None:
    with process(people(tmp_path), drain_seconds=3) as server:

        async def run() -> tuple[int, int, int]:
            async with httpx.AsyncClient(timeout=10, base_url=server.url) as client:
                slow = asyncio.create_task(client.post("/predict", json={"instances": [person("sleep 1.2")]}))
                await asyncio.sleep(0.2)
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                not_ready = await client.get("/readyz")
                health = await client.get("/healthz")
                assert not_ready.headers["connection"] == "close"
                return (await slow).status_code, not_ready.status_code, health.status_code

        assert asyncio.run(run()) == (200, 503, 200)
        assert server.wait_exit() == 0


def test_a_drain_ends_inside_its_time_even_when_the_model_does_not(tmp_path: Path) -> None:
    with process(people(tmp_path), drain_seconds=1.5) as server:

        async def run() -> None:
            async with httpx.AsyncClient(timeout=30, base_url=server.url) as client:
                stuck = asyncio.create_task(client.post("/predict", json={"instances": [person("sleep 9")]}))
                await asyncio.sleep(0.3)
                server.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(httpx.TransportError):
                    await stuck

        started = time.monotonic()
        asyncio.run(run())
        assert server.wait_exit() == 0
        assert time.monotonic() - started < 5


def workers_of(server: ServerProcess) -> list[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def total(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))


def test_a_worker_that_dies_is_replaced_and_counted(tmp_path: Path) -> None:
    with process(people(tmp_path), workers=2) as server:
        until = time.monotonic() + 20
        metrics = ""
        while total(metrics, "modelserve_ready") != 2 and time.monotonic() < until:
            time.sleep(0.1)
            metrics = httpx.get(server.url + "/metrics").text
        for _ in range(60):
            assert httpx.post(server.url + "/predict", json=BODY).status_code == 200
        time.sleep(0.4)
        before = total(httpx.get(server.url + "/metrics").text, "modelserve_requests_total")
        assert before >= 60, "one scrape shows what all workers did"
        victim, survivor = workers_of(server)
        os.kill(victim, signal.SIGKILL)
        outcomes: Counter[str] = Counter()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                answer = httpx.post(server.url + "/predict", json=BODY, timeout=10)
                outcomes[str(answer.status_code)] += 1
            except httpx.TransportError as error:
                outcomes[type(error).__name__] += 1
            metrics = httpx.get(server.url + "/metrics").text
            if total(metrics, "modelserve_worker_restarts_total") == 1:
                break
            time.sleep(0.05)
        assert total(metrics, "modelserve_worker_restarts_total") == 1
        assert set(outcomes) == {"200"}
        assert total(metrics, "modelserve_requests_total") >= before, "counters survive their worker"
        assert victim not in workers_of(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        for pid in (victim, survivor):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_workers_leave_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with process(people(tmp_path), workers=2, drain_seconds=1) as server:
        workers = workers_of(server)
        server.process.kill()
        until = time.monotonic() + 10
        alive = workers
        while alive and time.monotonic() < until:
            time.sleep(0.1)
            alive = [pid for pid in alive if Path(f"/proc/{pid}/stat").exists()]
            alive = [pid for pid in alive if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
        assert alive == []


def test_workers_that_cannot_start_end_the_server(tmp_path: Path) -> None:
    bundle = affine(tmp_path)
    (bundle / "model.pt").write_bytes(b"")
    with process(bundle, ready=False, workers=2) as server:
        assert server.wait_exit() == 1
        assert "model.pt: sha256 is" in server.log
