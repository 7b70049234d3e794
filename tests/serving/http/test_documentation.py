"""/openapi.json says what the server does: schemathesis holds it to that, with the fast path on and off."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.http.edge import route_label
from tests.serving.server_runs import ThreadedServer, threaded

POSITIVE = schemathesis.GenerationMode.POSITIVE


def test_examples_come_from_the_models_own_signature_and_work(
    affine_client: httpx.Client, people_client: httpx.Client
) -> None:
    for client in (affine_client, people_client):
        document = client.get("/openapi.json").json()
        predict = document["paths"]["/predict"]["post"]
        example = predict["requestBody"]["content"]["application/json"]["example"]
        assert client.post("/predict", json=example).status_code == 200
        docs = client.get("/docs")
        assert docs.status_code == 200
        assert "openapi.json" in docs.text
    item = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    row = item["properties"]["instances"]["items"]
    assert row["properties"]["age"] == {"type": "integer", "minimum": 0, "maximum": 150}
    assert set(row["required"]) == {"age", "name", "member"}


@pytest.fixture
def whole_servers(
    bundles: dict[str, Path], redis_server: str, database_url: str, fast_path: bool, tmp_path: Path
) -> Iterator[list[ThreadedServer]]:
    """With everything that a server can have, so that no route is refused for want of it."""
    options: dict[str, Any] = {
        "redis_url": redis_server,
        "database_url": database_url,
        "jobs_uri": str(tmp_path),
    }
    with (
        threaded(bundles["affine"], fast_path=fast_path, **options) as first,
        threaded(bundles["people"], fast_path=fast_path, **options) as second,
    ):
        yield [first, second]


@pytest.mark.parametrize("examples", [6, pytest.param(50, marks=pytest.mark.thorough)])
def test_schemathesis_finds_no_fault(
    whole_servers: list[ThreadedServer], record_property: Callable[[str, object], None], examples: int
) -> None:
    for server in whole_servers:
        statuses = hold_to_its_schema(server, examples)
        record_property("schemathesis", statuses)
        print(f"schemathesis: {sum(statuses.values())} requests, by status {dict(sorted(statuses.items()))}")
        assert sum(statuses.values()) > 10 * examples
        assert {200, 202, 404, 422} <= set(statuses)


def hold_to_its_schema(server: ThreadedServer, examples: int) -> dict[int, int]:
    """Requests that keep the schema and requests that break it; how often each status was answered."""
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    statuses: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        # Where there are no inputs, nothing of them can be broken.
        takes = operation.body or operation.query or operation.headers or operation.path_parameters
        modes = list(schemathesis.GenerationMode) if takes else [POSITIVE]
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            @given(case=strategy)
            def hold(case: schemathesis.Case) -> None:
                response = case.call(base_url=server.url)
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                excluded: list[Any] = []
                # Documented and right: a client that wants its answer within a microsecond does not get it.
                if "X-Request-Timeout" in (case.headers or {}) and response.status_code == 408:
                    excluded.append(positive_data_acceptance)
                # A schema cannot say that a tensor has as many values as its shape, nor that a key has been
                # used for another job.
                used = "Idempotency-Key" in (case.headers or {}) and response.status_code == 422
                if case.path.endswith("/infer") or used:
                    excluded.append(positive_data_acceptance)
                case.validate_response(response, excluded_checks=excluded)

            hold()
    return statuses


def test_route_labels_are_few() -> None:
    paths = [
        "/predict",
        "/v2/models/a/infer",
        "/v2/models/a/versions/1/infer",
        "/v2/x/y",
        "/v1/models/a:predict",
        "/v1/models/a",
        "/batch-predict/1",
        "/zz",
    ]
    assert [route_label(path) for path in paths] == [
        "/predict",
        "/v2/infer",
        "/v2/infer",
        "/v2",
        "/v1/predict",
        "/v1",
        "/batch-predict/{id}",
        "other",
    ]


def test_every_setting_is_explained() -> None:
    from serving.settings import Settings
    from serving.settings_table import settings_table

    lines = settings_table().splitlines()
    for name in Settings.model_fields:
        place = lines.index(f"SERVING_{name.upper()}")
        assert not lines[place + 1].strip().startswith("("), f"{name} has no explanation"
    assert lines[lines.index("SERVING_BUNDLE") + 1].endswith("(required)")


def test_the_page_of_the_documentation_runs_its_own_script_only(affine_client: httpx.Client) -> None:
    answer = affine_client.get("/docs")
    policy = answer.headers["content-security-policy"]
    [own] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
