"""Limits that hold when what counts them does not answer, and keys that cannot be tried out for nothing."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import redis

from serving.access import _MOST_CLIENTS, Buckets, client_of
from tests.serving.asking import metric
from tests.serving.model_bundles import affine
from tests.serving.server_runs import threaded

BODY = {"instances": [[1, 2, 3, 4]]}


def statuses(client: httpx.Client, requests: int, **headers: str) -> list[int]:
    return [client.post("/predict", json=BODY, headers=headers).status_code for _ in range(requests)]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("how", ["slow", "absent", "none"])
def test_the_rate_limit_holds_without_redis(tmp_path: Path, redis_server: str, how: str) -> None:
    """200 of 200 passed a limit of 5/s after one reply that took over 10 ms: nobody was refused while the way
    to Redis was closed, and closed it was for as long as somebody kept it slow."""
    url = {"slow": redis_server, "absent": "redis://127.0.0.1:1/0", "none": None}[how]
    options = {} if url is None else {"redis_url": url}
    with threaded(affine(tmp_path / "m"), rate_limit=5, **options) as server, server.client() as client:
        with redis.Redis.from_url(redis_server) as stopper:
            if how == "slow":
                stopper.execute_command("CLIENT", "PAUSE", "3000", "ALL")
            began = time.monotonic()
            seen = statuses(client, 200)
            seconds = time.monotonic() - began
        assert set(seen) == {200, 429}
        assert seen.count(200) <= 10 + 6 * seconds
        assert metric(client, "rate_limited_alone_total") > 0


def test_wrong_keys_are_limited_and_counted_and_a_right_one_is_not(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:the-key-of-ann\n")
    with threaded(affine(tmp_path / "m"), api_keys_file=keys) as server, server.client() as client:
        began = time.monotonic()
        seen = statuses(client, 400, **{"x-api-key": "a guess"})
        seconds = time.monotonic() - began
        assert set(seen) == {401, 429}
        assert seen.count(401) <= 51 + 51 * seconds
        assert statuses(client, 10, **{"x-api-key": "the-key-of-ann"}) == [200] * 10
        assert metric(client, "rejected_total") == 400


def test_buckets_fill_again_and_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    buckets = Buckets(2)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    now = 100.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for number in range(2 * _MOST_CLIENTS):
        buckets.take(str(number))
    assert len(buckets._clients) == _MOST_CLIENTS


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        (0, b"10.0.0.1", "127.0.0.1"),
        (1, b"6.6.6.6, 10.0.0.1", "10.0.0.1"),
        (3, b"6.6.6.6, 10.0.0.1, 172.16.0.1, 172.16.0.2", "10.0.0.1"),
        (3, b"172.16.0.1, 172.16.0.2", "127.0.0.1"),
        (1, b"", "127.0.0.1"),
    ],
    ids=["none", "one", "three", "fewer", "nobody"],
)
def test_a_client_is_whom_our_own_proxies_have_seen(proxies: int, forwarded: bytes, client: str) -> None:
    """Behind three proxies the last address is the second proxy's, and all users shared one limit; and what
    stands further left the client has written himself."""
    scope = {"client": ("127.0.0.1", 1)}
    assert client_of(scope, {b"x-forwarded-for": forwarded}, proxies) == client
