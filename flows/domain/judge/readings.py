"""Every gate's reading of a promotion: the one list that verdicts and pictures are made from."""

from __future__ import annotations

from collections.abc import Sequence

from flows.domain.judge import gates
from flows.domain.judge.client_errors import client_errors
from flows.domain.judge.gates import Reading
from flows.domain.judge.metrics import metrics
from flows.domain.judge.missing import missing
from flows.domain.judge.outcomes import outcomes
from flows.domain.judge.paths import Path, Tally
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.segments import segments
from flows.domain.judge.windows import Window


def beside_the_stable(
    policy: PromotionPolicy, windows: Sequence[Window], counted: Tally, followed: Path
) -> list[Reading]:
    """A canary's, against its stable. `counted` and `followed` are of the same windows."""
    return [
        *gates.compared(policy, windows, counted, followed),
        *client_errors(windows),
        *missing(windows),
        *segments(policy, windows),
        *metrics(policy, windows),
        *outcomes(policy, windows),
    ]
