"""The scan policy: what stops an image, what does not, and that silence is never clean."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flows.domain.errors import ScanRefused
from flows.domain.scan import Finding, Kind, ScanReport, decide
from flows.domain.spec import ScanPolicy

NOW = datetime(2026, 1, 10, tzinfo=UTC)
ALL: tuple[Kind, ...] = ("vulnerability", "secret", "misconfiguration")
FIXABLE = Finding("vulnerability", ("CVE-1",), "HIGH", "overflow", "zlib1g", "1.2", "1.3")
UNFIXED = replace(FIXABLE, names=("CVE-2",), fixed="")
MEDIUM = replace(FIXABLE, names=("CVE-3",), severity="MEDIUM")
SECRET = Finding("secret", ("github-pat",), "LOW", "token", where="/bundle/a:3")
ROOT = Finding("misconfiguration", ("AVD-DS-0002", "DS002"), "HIGH", "runs as root")


def report(*findings: Finding, policy: ScanPolicy | None = None, ran: tuple[Kind, ...] = ALL) -> ScanReport:
    missing = {kind: "no database" for kind in ALL if kind not in ran}
    chosen = policy or ScanPolicy()
    return ScanReport("sha256:1", "trivy 1", NOW, findings, ran, chosen, missing, "debian 12", NOW)


@pytest.mark.parametrize(
    ("finding", "policy", "stops"),
    [
        (FIXABLE, ScanPolicy(), True),
        (FIXABLE, ScanPolicy(mode="record"), True),
        (FIXABLE, ScanPolicy(allow=("CVE-1",)), False),
        (FIXABLE, ScanPolicy(allow=("CVE-10",)), True),
        (UNFIXED, ScanPolicy(), False),
        (UNFIXED, ScanPolicy(ignore_unfixed=False), True),
        (MEDIUM, ScanPolicy(), False),
        (MEDIUM, ScanPolicy(severity=("MEDIUM",)), True),
        (replace(FIXABLE, severity="UNKNOWN"), ScanPolicy(), False),
        (SECRET, ScanPolicy(severity=("CRITICAL",)), True),
        (SECRET, ScanPolicy(allow=("github-pat",)), False),
        (ROOT, ScanPolicy(), True),
        (ROOT, ScanPolicy(allow=("DS002",)), False),
        (replace(ROOT, severity="LOW"), ScanPolicy(), False),
    ],
)
def test_the_policy_decides_what_stops(finding: Finding, policy: ScanPolicy, stops: bool) -> None:
    assert decide(report(finding), policy).passed is not stops


def test_an_accepted_finding_is_still_reported() -> None:
    accepted = report(FIXABLE, policy=ScanPolicy(allow=("CVE-1",)))
    assert accepted.decision.accepted == (FIXABLE,)
    assert "| accepted | CVE-1 | HIGH |" in accepted.markdown()
    accepted.enforce()


def test_without_a_database_require_refuses_and_record_says_so() -> None:
    ran: tuple[Kind, ...] = ("secret", "misconfiguration")
    with pytest.raises(ScanRefused, match="vulnerabilities were not scanned: no database"):
        report(ran=ran).enforce()
    recorded = report(policy=ScanPolicy(mode="record"), ran=ran)
    recorded.enforce()
    assert "vulnerabilities not scanned: no database" in recorded.sentence
    assert "**Not run**: vulnerabilities, because no database" in recorded.markdown()


@pytest.mark.parametrize("mode", ["require", "record"])
@pytest.mark.parametrize("absent", ["secret", "misconfiguration"])
def test_no_mode_excuses_another_scanner_that_gave_no_result(mode: str, absent: Kind) -> None:
    policy = ScanPolicy.model_validate({"mode": mode})
    ran = tuple(kind for kind in ALL if kind != absent)
    assert not report(policy=policy, ran=ran).decision.passed


def test_nothing_ran_never_reads_as_clean() -> None:
    silent = report(policy=ScanPolicy(mode="record"), ran=())
    assert not silent.decision.passed
    assert "No findings" not in silent.markdown()


def test_the_refusal_is_one_line_that_names_the_worst_and_what_to_do() -> None:
    many = [replace(FIXABLE, names=(f"CVE-{n}",)) for n in range(7)]
    worst = replace(FIXABLE, names=("CVE-99",), severity="CRITICAL")
    with pytest.raises(ScanRefused) as refusal:
        report(*many, worst, SECRET).enforce()
    message = str(refusal.value)
    assert "\n" not in message
    assert "8 vulnerable packages: CVE-99 CRITICAL in zlib1g 1.2 (fixed in 1.3)" in message
    assert "and 5 more" in message
    assert "1 secret: github-pat LOW in /bundle/a:3" in message
    assert "scan.allow" in message


def test_the_table_shows_the_worst_first_and_counts_the_rest() -> None:
    many = [replace(MEDIUM, names=(f"CVE-{n:03}",)) for n in range(60)]
    text = report(*many, FIXABLE).markdown()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "CVE" in line]
    assert rows[0].startswith("| stops | CVE-1 | HIGH | zlib1g | 1.2 | 1.3 |")
    assert len(rows) == 50
    assert "11 more findings are not shown." in text


def test_titles_from_outside_cannot_break_the_table() -> None:
    text = report(replace(FIXABLE, title="a|b\n<script>alert(1)</script> [x](http://y)")).markdown()
    (row,) = [line for line in text.splitlines() if "CVE-1 |" in line]
    assert "a\\|b \\<script\\>" in row
    assert "[x](" not in row


def test_an_old_database_is_called_old() -> None:
    fresh = report()
    old = replace(fresh, database_at=NOW - timedelta(days=30))
    assert "0 days old" in fresh.markdown()
    assert "**old**" not in fresh.markdown()
    assert "30 days old, **old**" in old.markdown()


def test_the_json_for_the_registry_holds_what_mattered() -> None:
    content = json.loads(json.dumps(report(FIXABLE, MEDIUM).to_json()))
    assert content["findings"] == {"vulnerability:HIGH": 1, "vulnerability:MEDIUM": 1}
    assert [one["names"] for one in content["stopping"]] == [["CVE-1"]]
    assert content["reasons"] == list(report(FIXABLE, MEDIUM).decision.reasons)
