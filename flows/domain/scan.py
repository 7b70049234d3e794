"""What a scan found, what the model's policy makes of it, and how a person reads it.

Pure: the scanner's adapter fills a `ScanReport`, `decide` applies the policy, `markdown` writes it up.
Silence is never clean: a scanner that did not run is named with its reason, and under `require` a missing
vulnerability database refuses the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from flows.domain.errors import ScanRefused
from flows.domain.spec import ScanPolicy

Kind = Literal["vulnerability", "secret", "misconfiguration"]
SCANNERS: Mapping[Kind, str] = {
    "vulnerability": "vulnerabilities",
    "secret": "secrets",
    "misconfiguration": "misconfigurations",
}
SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN")
ROWS = 50
"""Findings that the table shows; the others are counted."""
STALE = timedelta(days=7)
"""A database older than this is called old in the report."""


@dataclass(frozen=True)
class Finding:
    """One problem in an image; `names` are all its ids, the first is the one that is shown."""

    kind: Kind
    names: tuple[str, ...]
    severity: str
    title: str
    package: str = ""
    installed: str = ""
    fixed: str = ""
    """Version that fixes it; empty when there is none."""
    where: str = ""
    """File of a secret or a misconfiguration."""

    @property
    def id(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class ScanReport:
    """The facts of one scan of one image."""

    image: str
    scanner: str
    """Program and version, such as `trivy 0.59.1`."""
    scanned_at: datetime
    findings: tuple[Finding, ...]
    ran: tuple[Kind, ...]
    policy: ScanPolicy
    """The model's policy, which `decision` applies."""
    not_run: Mapping[Kind, str] = field(default_factory=dict)
    """Scanners without a result, each with the reason."""
    system: str = ""
    """Operating system in the image; empty when none was recognised."""
    database_at: datetime | None = None
    """When the vulnerability database was made."""
    sbom: str | None = None
    """Path of the CycloneDX bill of materials."""
    packages: int = 0
    """Components in the bill of materials."""

    @property
    def decision(self) -> ScanDecision:
        return decide(self, self.policy)

    @property
    def sentence(self) -> str:
        """Verdict and coverage in one line."""
        decision = self.decision
        verdict = "scan passed" if decision.passed else f"scan refused: {'; '.join(decision.reasons)}"
        ran = ", ".join(SCANNERS[kind] for kind in self.ran) or "nothing"
        missing = "".join(f"; {SCANNERS[kind]} not scanned: {why}" for kind, why in self.not_run.items())
        return f"{verdict} (scanned for {ran}{missing})"

    def enforce(self) -> None:
        """Raise ScanRefused unless the policy lets the image pass."""
        self.decision.enforce()

    def markdown(self) -> str:
        return markdown(self, self.decision)

    def to_json(self) -> dict[str, Any]:
        """The report for the registry's event: facts, counts, and the findings that mattered."""
        decision = self.decision
        counts: dict[str, int] = {}
        for finding in self.findings:
            key = f"{finding.kind}:{finding.severity}"
            counts[key] = counts.get(key, 0) + 1
        return {
            "image": self.image,
            "scanner": self.scanner,
            "scanned_at": self.scanned_at.isoformat(),
            "system": self.system,
            "ran": list(self.ran),
            "not_run": dict(self.not_run),
            "database_at": self.database_at.isoformat() if self.database_at else None,
            "sbom": self.sbom,
            "packages": self.packages,
            "findings": counts,
            "stopping": [asdict(finding) for finding in decision.stopping[:ROWS]],
            "accepted": [asdict(finding) for finding in decision.accepted[:ROWS]],
            "reasons": list(decision.reasons),
            "sentence": self.sentence,
        }

    def facts(self) -> dict[str, Any]:
        """Everything that was found, and nothing of the policy: what `from_facts` takes."""
        return {
            "image": self.image,
            "scanner": self.scanner,
            "scanned_at": self.scanned_at.isoformat(),
            "findings": [asdict(finding) for finding in self.findings],
            "ran": list(self.ran),
            "not_run": dict(self.not_run),
            "system": self.system,
            "database_at": self.database_at.isoformat() if self.database_at else None,
            "packages": self.packages,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> ScanReport:
        """The report as it was, under the strictest policy until the caller sets the model's."""
        moment = facts["database_at"]
        return cls(
            image=facts["image"],
            scanner=facts["scanner"],
            scanned_at=datetime.fromisoformat(facts["scanned_at"]),
            findings=tuple(Finding(**{**one, "names": tuple(one["names"])}) for one in facts["findings"]),
            ran=tuple(facts["ran"]),
            policy=ScanPolicy(),
            not_run=facts["not_run"],
            system=facts["system"],
            database_at=datetime.fromisoformat(moment) if moment else None,
            packages=facts["packages"],
        )


@dataclass(frozen=True)
class ScanDecision:
    """What a policy makes of a report. An empty `reasons` lets the image pass."""

    reasons: tuple[str, ...]
    stopping: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    """Findings that would stop the image if the policy did not allow their ids."""
    image: str

    @property
    def passed(self) -> bool:
        return not self.reasons

    def enforce(self) -> None:
        """Raise ScanRefused unless the image passed."""
        if self.reasons:
            raise ScanRefused(
                f"the scan refuses {self.image}: {'; '.join(self.reasons)}; nothing was deployed. "
                "Fix it, or accept a finding by its id in scan.allow of model.yaml"
            )


def decide(report: ScanReport, policy: ScanPolicy) -> ScanDecision:
    """Apply the policy.

    Stops: a vulnerability or misconfiguration of a severity in the policy (without a fix only when
    `ignore_unfixed` is false), any secret, and a scanner that gave no result, except for vulnerabilities
    under `record`.
    """
    harmful = [finding for finding in report.findings if _stops(finding, policy)]
    accepted = tuple(finding for finding in harmful if not set(policy.allow).isdisjoint(finding.names))
    stopping = tuple(finding for finding in harmful if finding not in accepted)
    reasons = [_reason(kind, stopping) for kind in SCANNERS if any(one.kind == kind for one in stopping)]
    for kind, plural in SCANNERS.items():
        if kind in report.ran or (kind == "vulnerability" and policy.mode == "record"):
            continue
        why = report.not_run.get(kind, "the scanner gave no result")
        hint = " (scan.mode is require)" if kind == "vulnerability" else ""
        reasons.append(f"{plural} were not scanned: {why}{hint}")
    return ScanDecision(tuple(reasons), stopping, accepted, report.image)


def markdown(report: ScanReport, decision: ScanDecision) -> str:
    """The report as a page of markdown: verdict, what ran, and a table of findings, worst first."""
    verdict = "passed" if decision.passed else "**refused**: " + _text("; ".join(decision.reasons))
    lines = [f"# Scan of `{report.image}`", "", f"Verdict: {verdict}.", ""]
    lines += [f"- Scanner: {report.scanner}, {report.scanned_at:%Y-%m-%d %H:%M} UTC"]
    lines += [f"- Operating system: {report.system or 'none recognised'}; {report.packages} components"]
    lines += [f"- Ran: {', '.join(SCANNERS[kind] for kind in report.ran) or 'nothing'}"]
    lines += [
        f"- **Not run**: {SCANNERS[kind]}, because {_text(why)}" for kind, why in report.not_run.items()
    ]
    if report.database_at is not None:
        age = report.scanned_at - report.database_at
        old = ", **old**: newer vulnerabilities are missing from it" if age > STALE else ""
        lines.append(f"- Vulnerability database: {max(age.days, 0)} days old{old}")
    if report.sbom is not None:
        lines.append(f"- Bill of materials (CycloneDX): `{report.sbom}`")
    lines += ["", *_table(report, decision)]
    return "\n".join(lines) + "\n"


def _stops(finding: Finding, policy: ScanPolicy) -> bool:
    if finding.kind == "secret":
        return True
    if finding.severity not in policy.severity:
        return False
    return finding.kind == "misconfiguration" or bool(finding.fixed) or not policy.ignore_unfixed


def _reason(kind: Kind, stopping: Iterable[Finding]) -> str:
    found = [one for one in stopping if one.kind == kind]
    first = sorted(found, key=_order)[:3]
    if kind == "vulnerability":
        named = [
            f"{one.id} {one.severity} in {one.package} {one.installed}"
            + (f" (fixed in {one.fixed})" if one.fixed else " (no fix yet)")
            for one in first
        ]
    else:
        named = [f"{one.id} {one.severity}" + (f" in {one.where}" if one.where else "") for one in first]
    rest = f" and {len(found) - len(first)} more" if len(found) > len(first) else ""
    noun = {"vulnerability": "vulnerable package", "secret": "secret", "misconfiguration": "misconfiguration"}
    return f"{len(found)} {noun[kind]}{'s' if len(found) != 1 else ''}: {', '.join(named)}{rest}"


def _table(report: ScanReport, decision: ScanDecision) -> list[str]:
    if not report.findings:
        return ["No findings." if report.ran else "Nothing was scanned, so nothing is known."]
    lines = [
        "| | Finding | Severity | Where | Installed | Fixed in | Title |",
        "|---|---|---|---|---|---|---|",
    ]

    def rank(finding: Finding) -> tuple[bool, tuple[int, str, str, str]]:
        return (finding not in decision.stopping, _order(finding))

    for finding in sorted(report.findings, key=rank)[:ROWS]:
        mark = "stops" if finding in decision.stopping else ""
        if finding in decision.accepted:
            mark = "accepted"
        cells = [mark, finding.id, finding.severity, finding.package or finding.where]
        cells += [finding.installed, finding.fixed, finding.title]
        lines.append("| " + " | ".join(_text(cell) for cell in cells) + " |")
    if len(report.findings) > ROWS:
        lines += ["", f"{len(report.findings) - ROWS} more findings are not shown."]
    return lines


def _order(finding: Finding) -> tuple[int, str, str, str]:
    known = finding.severity in SEVERITIES
    worst = SEVERITIES.index(finding.severity) if known else len(SEVERITIES)
    return (worst, finding.kind, finding.id, finding.package + finding.where)


def _text(cell: str) -> str:
    """Text from outside, harmless in a markdown table: one line, no markup of its own."""
    flat = " ".join(cell.split())
    for character in "\\|<>`*_[]":
        flat = flat.replace(character, "\\" + character)
    return flat if len(flat) <= 300 else flat[:299] + "…"
