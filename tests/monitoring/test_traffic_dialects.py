"""Istio's and Envoy's words become the same series: whatever reads them need not know which mesh it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parents[2] / "monitoring"


def parsed(path: str) -> Any:
    return yaml.safe_load((MONITORING / path).read_text())


def test_both_dialects_are_held_to_the_same_expectations_word_for_word() -> None:
    istio, envoy = (parsed(f"tests/traffic-{dialect}_test.yml")["tests"] for dialect in ("istio", "envoy"))
    assert [case["name"] for case in istio] == [case["name"] for case in envoy]
    assert {"no traffic", "no data"} <= {case["name"] for case in envoy}
    for ours, theirs in zip(istio, envoy, strict=True):
        assert ours["promql_expr_test"] == theirs["promql_expr_test"], ours["name"]


def test_both_dialects_record_the_same_series_and_every_one_is_expected_somewhere() -> None:
    records = [
        [
            rule["record"]
            for group in parsed(f"rules/traffic-{dialect}.yml")["groups"]
            for rule in group["rules"]
        ]
        for dialect in ("istio", "envoy")
    ]
    assert records[0] == records[1]
    checks = [
        check
        for case in parsed("tests/traffic-envoy_test.yml")["tests"]
        for check in case["promql_expr_test"]
    ]
    assert {check["expr"].split("{")[0] for check in checks} == set(records[0])
