"""Watching a release: counters → window → verdict, stored before anybody acts on it.

Measuring is the adapter's, judging the judge's; here is only the loop that joins them, and what a verdict
makes of the promotion. A system that does not answer makes a window unobserved: weights stay, no evidence
is added or lost, and the next observed window covers the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

from flows.domain.errors import (
    ApprovalExpired,
    DependencyDown,
    PromotionKept,
    PromotionRejected,
    PromotionUnproven,
)
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge, judge_promoted
from flows.domain.judge.plan import duration, plan
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window, unobserved
from flows.domain.promotion import Promotion, Standing, State
from flows.domain.release import release_name
from flows.domain.routes import Routes
from flows.steps import hotfix
from flows.steps.restore import condemnation, stay
from flows.steps.truths import Truths
from flows.wiring import ControlPlane

FIRST_RELEASE = (
    "nothing precedes this release: once its samples are answered it serves everybody, and is watched in the "
    "background; harm takes it out, silence does not"
)

Judge = Callable[[Sequence[Window]], Verdict]
Show = Callable[[Window, Verdict], None]


def announce(
    plane: ControlPlane, promotion: Promotion, policy: PromotionPolicy, say: Callable[[str], None]
) -> None:
    """Say what this promotion can find, and when, before it starts; of a hotfix also who wants it."""
    asked = hotfix.agreed(plane.registry.events(promotion.model, promotion))
    if asked is not None:
        say(hotfix.sentence(asked))
    try:
        planned = forecast(plane, promotion.model, policy)
    except DependencyDown as error:
        say(f"warning: no plan, since the last hour's traffic is not known: {error}")
        return
    for sentence in planned:
        say(sentence)
    sentences = [hotfix.sentence(asked)] if asked is not None else []
    detail = {"sentence": "; ".join([*sentences, *planned])}
    plane.registry.note(promotion.model, "planned", detail, promotion)


def forecast(plane: ControlPlane, model: str, policy: PromotionPolicy) -> tuple[str, ...]:
    """The plan of a promotion under this policy at the traffic of the last hour, a sentence a line.

    Raises DependencyDown when Prometheus does not answer and there is something to be compared with.
    """
    if plane.registry.standing(model).stable is None:
        return (FIRST_RELEASE,)
    return plan(policy, *plane.counters.recent(model)).sentences


def watch(
    plane: ControlPlane,
    promotion: Promotion,
    policy: PromotionPolicy,
    weight: int,
    show: Show,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Verdict:
    """Watch a step until the judge lets it pass, and `may_go_on` as well, which is asked only then.

    Raises PromotionRejected when the traffic must go back, PromotionUnproven when it must for want of proof
    at the deadline, PromotionKept when it stays as it is then, ApprovalExpired when only `may_go_on` was
    missing, PromotionLost when somebody else took the turn.
    """
    _refuse_the_condemned(plane, promotion)
    with closing(Record(plane, promotion, weight, policy)) as record:
        while True:
            verdict = record.next_window(policy.window_seconds, lambda windows: judge(policy, windows))
            show(record.windows[-1], verdict)
            if verdict.outcome == "rollback" and verdict.kind == "reject":
                raise PromotionRejected(verdict.sentence)
            if verdict.outcome == "rollback":
                raise PromotionUnproven(verdict.sentence)
            if verdict.outcome == "keep":
                _keep(plane, promotion, verdict)
            # Paused, or with somebody else's hands on the route: judged as ever, but it never goes on.
            if verdict.outcome == "advance" and not record.held:
                if may_go_on():
                    return verdict
                if verdict.expired:
                    _unapproved(plane, promotion, policy, verdict)


def watch_on(
    plane: ControlPlane, promotion: Promotion, policy: PromotionPolicy, show: Show
) -> Verdict | None:
    """Watch the new stable after 100 %; None when the policy does not ask for it."""
    if policy.post_watch_seconds == 0:
        return None
    _refuse_the_condemned(plane, promotion)
    record = Record(plane, promotion, 100)
    ramp = record.windows[: record.ramp]
    while True:
        verdict = record.next_window(
            policy.window_seconds,
            lambda windows: judge_promoted(policy, ramp, windows[len(ramp) :]),
        )
        show(record.windows[-1], verdict)
        if verdict.outcome == "rollback":
            raise PromotionRejected(verdict.sentence)
        if verdict.outcome in ("advance", "keep") and not record.held:
            return verdict


def _refuse_the_condemned(plane: ControlPlane, promotion: Promotion) -> None:
    """A run that died between a verdict and its consequence is followed by one that draws it."""
    found = condemnation(plane, promotion)
    if found is None:
        return
    state, why = found
    raise PromotionRejected(why) if state is State.REJECTED else PromotionUnproven(why)


def _keep(plane: ControlPlane, promotion: Promotion, verdict: Verdict) -> NoReturn:
    with plane.registry.turn(promotion.model) as turn:
        standing = turn.mine(promotion)
        if standing.stable is None:
            stay(plane, turn, standing, promotion, verdict.sentence)
        else:
            turn.end(promotion, State.KEPT, verdict.sentence)
    raise PromotionKept(verdict.sentence)


def _unapproved(
    plane: ControlPlane, promotion: Promotion, policy: PromotionPolicy, verdict: Verdict
) -> NoReturn:
    """The release may be good; without the person's word it does not go on, and is not left half-way."""
    late = f"nobody has approved the next step within {duration(policy.deadline_seconds)}"
    if policy.at_deadline != "rollback":
        _keep(plane, promotion, replace(verdict, sentence=f"{late}; the traffic stays as it is"))
    raise ApprovalExpired(f"{late}; the policy takes the traffic back")


class Record:
    """A promotion's windows: the stored ones, and the ones to come. With a policy also those counts that a
    model asks for."""

    def __init__(
        self,
        plane: ControlPlane,
        promotion: Promotion,
        weight: int,
        policy: PromotionPolicy | None = None,
    ) -> None:
        self._plane = plane
        self._promotion = promotion
        self._weight = weight
        self._metrics = policy.metrics if policy is not None else ()
        self._outcomes = policy.outcomes if policy is not None else None
        self._truths: Truths | None = None
        stored = plane.registry.windows(promotion)
        self.windows = [Window.from_json(window.content) for window in stored]
        self.ramp = sum(not window.watching for window in stored)
        """How many of the windows are from before the release became stable."""
        snapshot = plane.registry.snapshot(promotion)
        self._before = Snapshot.from_json(snapshot) if snapshot else None
        self._conflict: Routes | None = None
        self._paused = False
        self._trouble = ""
        """Why the counters could not be read the last time."""

    @property
    def held(self) -> bool:
        """A person has paused the promotion, or changed the route."""
        return self._paused or self._conflict is not None

    def close(self) -> None:
        if self._truths is not None:
            self._truths.close()

    def next_window(self, seconds: float, judging: Judge) -> Verdict:
        """Wait, count, judge, store; the verdict. Raises PromotionLost when the promotion is not ours."""
        clock = self._plane.clock
        if self._before is None:
            self._before = self._look(None)
        began = clock.time() if self._before is None else self._before.at
        clock.sleep(seconds)
        standing = self._standing()
        window = self._measure(standing, began)
        verdict = judging([*self.windows, window])
        self._store(window, verdict, standing)
        return verdict

    def _measure(self, standing: Standing, began: float) -> Window:
        newcomer = self._promotion.version
        rival = standing.stable if standing.canary is not None else standing.previous
        canary = release_name(standing.model, newcomer)
        stable = rival.name if rival is not None and rival.version != newcomer else None
        after = self._look(self._before)
        if self._before is None or after is None:
            why = self._trouble or "the counters could not be read"
            last = self.windows[-1].end if self.windows else began
            now = max(last, self._plane.clock.time())
            return unobserved(last, now, self._weight, why, stable=stable is not None)
        window = difference(self._before, after, canary, stable, self._weight)
        if window.observed:
            self._before = after
        return window

    def _look(self, earlier: Snapshot | None) -> Snapshot | None:
        try:
            standing = self._plane.registry.standing(self._promotion.model)
            names = [release.name for release in standing.releases if release.in_service]
            snapshot = self._plane.counters.snapshot(names, earlier, self._metrics)
        except DependencyDown as error:
            self._trouble = str(error)
            return None
        if self._outcomes is not None and self._truths is None and standing.stable is not None:
            self._truths = Truths(
                self._plane.settings.redis_url,
                self._outcomes,
                release_name(standing.model, self._promotion.version),
                standing.stable.name,
                self._shifts(),
            )
        return snapshot if self._truths is None else self._truths.joined(snapshot)

    def _shifts(self) -> list[float]:
        """When the weight has changed, the last time just now."""
        shifts = [
            later.start
            for earlier, later in pairwise(self.windows[: self.ramp])
            if earlier.weight != later.weight
        ]
        if self.windows and self.windows[-1].weight != self._weight:
            shifts.append(max(self.windows[-1].end, self._plane.clock.time()))
        return shifts

    def _standing(self) -> Standing:
        """The model's rows, after a look at the lease, the pause and the route."""
        with self._plane.registry.turn(self._promotion.model) as turn:
            standing = turn.mine(self._promotion)
        assert standing.promotion is not None
        self._paused = standing.promotion.paused
        found = self._plane.platform.routes(self._promotion.model)
        if found != standing.route and found != self._conflict:
            detail = {"found": dict(found.weights), "expected": dict(standing.route.weights)}
            self._plane.registry.note(self._promotion.model, "route-drift", detail, self._promotion)
        self._conflict = found if found != standing.route else None
        return standing

    def _store(self, window: Window, verdict: Verdict, standing: Standing) -> None:
        watching = standing.promotion is not None and standing.promotion.state is State.WATCHING
        self._plane.registry.store_window(
            self._promotion,
            len(self.windows),
            window.to_json(),
            verdict.to_json(),
            self._before.to_json() if self._before is not None else None,
            watching=watching,
        )
        self.windows.append(window)
