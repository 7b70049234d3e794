"""Keys are needed where they should be; the rate limit counts over all replicas."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving.model_bundles import affine
from tests.serving.server_runs import threaded

BODY = {"instances": [[1, 2, 3, 4]]}


@pytest.fixture(scope="module")
def guarded(bundles: dict[str, Path], fast_path: bool, tmp_path_factory: pytest.TempPathFactory) -> Any:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    hidden = hashlib.sha256(b"second").hexdigest()
    keys.write_text(f"# who may ask\nfirst-team:first\n\nsecond-team:sha256:{hidden}\n")
    with threaded(bundles["affine"], fast_path=fast_path, api_keys_file=keys) as server:
        yield server, keys


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "bearer second"}, 200),
        ({"x-api-key": "first"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic first"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_keys(guarded: Any, headers: dict[str, str], status: int) -> None:
    server, _ = guarded
    with server.client() as client:
        response = client.post("/predict", json=BODY, headers=headers)
        assert response.status_code == status
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["content-type"] == "application/problem+json"
        infer = client.post("/v2/models/affine/infer", content=b"{}", headers=headers)
        assert infer.status_code == (400 if status == 200 else 401)


def test_probes_and_metrics_need_no_key(guarded: Any) -> None:
    server, _ = guarded
    with server.client() as client:
        for path in ("/", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/docs", "/openapi.json", "/v2", "/nothing"):
            assert client.get(path).status_code == 401


def test_keys_are_rotated_without_a_restart(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, path = guarded
    before = path.read_text()
    monkeypatch.setattr("serving.access._REREAD_SECONDS", 0.0)
    try:
        path.write_text("third-team:third\n")
        with server.client() as client:
            assert client.post("/predict", json=BODY, headers={"x-api-key": "third"}).status_code == 200
            assert client.post("/predict", json=BODY, headers={"x-api-key": "first"}).status_code == 401
    finally:
        path.write_text(before)
        time.sleep(0.01)
        path.touch()


PATIENT = {"enabled": True, "timeout_seconds": 1.0}

"""These tests are about what is cached; on a busy machine Redis may be slower than the default patience."""


@pytest.mark.usefixtures("database")
def test_the_rate_limit_counts_each_client_over_all_replicas(
    tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.access._REDIS_SECONDS", 1.0)
    bundle = affine(tmp_path)
    options = {"redis_url": redis_server, "rate_limit": 20, "forwarded_clients": True}
    with (
        threaded(bundle, **options) as first,
        threaded(bundle, **options) as second,
        first.client() as one,
        second.client() as two,
    ):
        statuses = []
        for number in range(60):
            response = (one, two)[number % 2].post(
                "/predict", json={"instances": [[1, 2, 3, 4]]}, headers={"x-forwarded-for": "10.0.0.1"}
            )
            statuses.append(response.status_code)
        assert 20 <= statuses.count(200) <= 40
        assert statuses.count(429) == 60 - statuses.count(200)
        refused = one.post(
            "/predict", json={"instances": [[1, 2, 3, 4]]}, headers={"x-forwarded-for": "10.0.0.1"}
        )
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        other = one.post(
            "/predict", json={"instances": [[1, 2, 3, 4]]}, headers={"x-forwarded-for": "10.0.0.2"}
        )
        assert other.status_code == 200
        assert one.get("/healthz").status_code == 200
