"""The decision report of a version's last promotion, in Markdown: `decision_report.py MODEL VERSION`.

The workflow appends it to the job's summary, so that the reason stands where the result stands.
"""

from __future__ import annotations

import sys

from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.spec import parse_spec
from flows.settings import Settings
from flows.steps.report import decision_report
from flows.wiring import ControlPlane, control_plane


def last_report(plane: ControlPlane, model: str, version: int) -> str:
    """The report of the newest promotion of this version, or a sentence when there was none."""
    found = [one for one in plane.registry.promotions(model) if one.version == version]
    if not found:
        return f"No promotion of {model} v{version} has begun."
    promotion = max(found, key=lambda one: one.started_at)
    stored = plane.registry.windows(promotion)
    windows = [Window.from_json(one.content) for one in stored]
    verdicts = [Verdict.from_json(one.verdict) for one in stored]
    policy = parse_spec(plane.registry.spec(model, version), "model.yaml").promotion
    shown = spoken(policy, windows, verdicts[-1] if verdicts else None)
    return decision_report(promotion, plane.registry.events(model, promotion), windows, verdicts, shown)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: decision_report.py MODEL VERSION")
    print(last_report(control_plane(Settings()), sys.argv[1], int(sys.argv[2])))
