"""`promote`: take one release from the registry to all of the traffic, or back. The straight path.

begin → build → scan → start → verify → (shift → watch) a step → crown → watch on. Whatever goes wrong,
`restore` puts the traffic back. Every step looks at the registry before it acts, so a promotion that was
killed anywhere can be run again and goes on where it stood.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows.adapters.servers import verify
from flows.domain.errors import (
    ApprovalExpired,
    DependencyDown,
    ModelServeError,
    PromotionKept,
    PromotionLost,
    PromotionRejected,
    PromotionUnproven,
    RouteConflict,
    ScanRefused,
    VerificationFailed,
)
from flows.domain.judge.plan import duration
from flows.domain.promotion import Promotion, Standing, State, due, ramp, settled
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec, parse_spec
from flows.domain.verification import parse_samples
from flows.steps import hotfix
from flows.steps.approval import Gate
from flows.steps.report import Progress, publish_image, publish_report
from flows.steps.restore import Restored, bring_home, reconcile, restore
from flows.steps.watch import announce, watch, watch_on
from flows.wiring import ControlPlane, control_plane

AGAINST_THE_RELEASE = (PromotionRejected, ScanRefused, VerificationFailed)
"""Errors that say something about the release; every other one is a fault of ours and teaches nothing."""

BUILD_SECONDS = 1800.0
"""What image, scan and samples may take before the first step, from which the policy's deadline counts. The
registry's own deadline is later by that: it is for flows that hang, and must not cut in before the judge."""

APPROVAL_LOOK_SECONDS = 2.0
"""Between two looks whether a person has approved."""

ROUTE_PATIENCE_SECONDS = 5.0
"""Between two looks at a route that somebody else has changed, or at a system that is away."""


def _worth_a_retry(_task: object, _run: object, state: object) -> bool:
    """A system that is away comes back; a verdict against the release does not change by asking again."""
    error = getattr(state, "data", None)
    exception = getattr(error, "exception", error)
    return isinstance(exception, DependencyDown | RouteConflict)


Body = TypeVar("Body", bound=Callable[..., object])


def step(name: str) -> Callable[[Body], Body]:
    """A task of the promotion: never cached, since effects must happen again, and patient with outages."""
    return task(  # type: ignore[return-value]
        task_run_name=name,
        cache_policy=NO_CACHE,
        retries=20,
        retry_delay_seconds=ROUTE_PATIENCE_SECONDS,
        retry_condition_fn=_worth_a_retry,
        log_prints=True,
    )


@flow(name="promote", flow_run_name="promote {model} v{version}", timeout_seconds=7 * 24 * 3600)
def promote(model: str, version: int, hotfix_by: str = "", hotfix_reason: str = "") -> str:
    """Promote one release of a model.

    Args:
        model: its name in the registry.
        version: the registered version to promote.
        hotfix_by: who wants shorter steps, for a release that mends what fails now; empty for none.
        hotfix_reason: why; recorded with who.

    Returns the sentence that says how it ended. Raises PromotionRejected when the evidence spoke against
    the release and traffic went back, PromotionUnproven when there was too little of it by the deadline;
    other ModelServeErrors when something of ours was in the way.
    """
    if bool(hotfix_by.strip()) != bool(hotfix_reason.strip()):
        raise ModelServeError("a hotfix says who wants it and why: hotfix_by and hotfix_reason")
    plane = control_plane()
    run = str(flow_run.id or uuid.uuid4())
    release = plane.registry.release(model, version)
    spec = parse_spec(plane.registry.spec(model, version), f"{release.name}/model.yaml")
    hangs = BUILD_SECONDS + spec.resources.start_seconds + spec.promotion.deadline_seconds
    if spec.promotion.approve_before:
        hangs += spec.promotion.deadline_seconds  # a person before the first step has as long as the ramp
    promotion = plane.registry.begin(model, version, run, hangs, plane.settings.lease_seconds)
    log = get_run_logger()
    if hotfix_by.strip():
        hotfix.ask(plane, promotion, spec.promotion, hotfix_by.strip(), hotfix_reason.strip())
    spec = hotfix.hurried(plane, promotion, spec)
    with driven(plane, promotion):
        try:
            return _promote(plane, promotion, release, spec)
        except PromotionLost:
            # Whoever took the turn decides; only make sure that a half-done step of ours does not stand.
            reconcile(plane, model)
            raise
        except PromotionKept as error:
            log.warning(f"unproven: {_one_line(error)}")
            raise
        except PromotionUnproven as error:
            log.warning(f"unproven: {_go_back(plane, promotion, error).sentence}")
            raise
        except BaseException as error:
            log.error(_go_back(plane, promotion, error).sentence)
            raise
        finally:
            publish_report(plane, promotion.id, spec)


def _promote(plane: ControlPlane, promotion: Promotion, release: Release, spec: ModelSpec) -> str:
    log = get_run_logger()
    if promotion.state is not State.WATCHING:
        ready_scanner(plane, spec)
        build_image(plane, promotion, release)
        scan_image(plane, promotion, release, spec)
        start_servers(plane, promotion, release, spec)
        verify_samples(plane, promotion, release)
        announce(plane, promotion, spec.promotion, log.info)
        ahead = steps(plane, promotion, spec)
        gates = [gate for gate, _, _ in ahead]
        if gates[0] is not None and not plane.registry.approved(promotion, gates[0]):
            await_approval(plane, promotion, spec, gates[0])
        for (_, weight, watched), next_gate in zip(ahead, [*gates[1:], None], strict=True):
            shift(plane, promotion, weight)
            if watched:
                watch_step(plane, promotion, spec, weight, next_gate)
        crown(plane, promotion, spec)
    watch_after(plane, promotion, spec)
    return finish(plane, promotion)


def steps(plane: ControlPlane, promotion: Promotion, spec: ModelSpec) -> list[tuple[int | None, int, bool]]:
    """The steps still to come: the approval that each waits for (None: none), its weight, and whether it is
    watched before the next.

    A promotion that is run again begins at the weight it had reached. Once everybody is on the new release
    there is nobody left to compare with: the watch after 100 % looks on. A first release has nobody to
    compare with from the start: it takes everything at once, and is watched there.
    """
    standing = plane.registry.standing(promotion.model)
    if standing.stable is None:
        return [(min(spec.promotion.approve_before, default=None), 100, True)]
    reached = standing.promotion.weight if standing.promotion else 0
    most = 100 - spec.promotion.hold_back
    gates = spec.promotion.approve_before
    return [
        (step if step in gates else None, min(step, most), step < 100)
        for step in spec.promotion.steps
        if min(step, most) >= reached
    ]


@step("ready scanner")
def ready_scanner(plane: ControlPlane, spec: ModelSpec) -> None:
    """What cannot be scanned as the policy wants is not even built."""
    plane.scanner.ready(spec.scan, print)


@step("build image")
def build_image(plane: ControlPlane, promotion: Promotion, release: Release) -> None:
    """By digest, with the bundle's sha256 as a label; an image that is there already is taken."""
    with tempfile.TemporaryDirectory(prefix="modelserve-image-") as folder:
        bundle = plane.artifacts.fetch(release.bundle, release.sha256, Path(folder) / "bundle")
        image = plane.images.build(release, bundle, progress=print)
    with plane.registry.turn(promotion.model) as turn:
        turn.mine(promotion)
        turn.record_image(promotion, image)
    print(f"image {image}")


@step("scan image")
def scan_image(plane: ControlPlane, promotion: Promotion, release: Release, spec: ModelSpec) -> None:
    """Trivy and the model's policy decide, before anything is deployed."""
    image = plane.registry.release(release.model, release.version).image
    assert image is not None, "the image is built and recorded before it is scanned"
    report = plane.scanner.scan(plane.images.layout(release), spec.scan)
    plane.registry.note(promotion.model, "scanned", report.to_json(), promotion)
    publish_image(promotion, image, report.markdown())
    print(report.sentence)
    report.enforce()


@step("start servers")
def start_servers(plane: ControlPlane, promotion: Promotion, release: Release, spec: ModelSpec) -> None:
    """At weight 0: nobody is sent there yet."""
    release = plane.registry.release(release.model, release.version)
    with plane.registry.turn(promotion.model) as turn:
        turn.mine(promotion)
    plane.platform.start(release, spec)
    plane.registry.note(promotion.model, "started", {"url": plane.platform.url(release)}, promotion)


@step("verify samples")
def verify_samples(plane: ControlPlane, promotion: Promotion, release: Release) -> None:
    """Golden requests to the release's own address, past the traffic split."""
    name = f"{release.name}/samples.jsonl"
    samples = parse_samples(plane.artifacts.text(release.bundle, "samples.jsonl"), name)
    count = verify(plane.platform.url(release), release.name, samples)
    plane.registry.note(promotion.model, "verified", {"samples": count}, promotion)
    print(f"{count} golden requests answered as they were when the release was packaged")


@step("approve {weight} %")
def await_approval(plane: ControlPlane, promotion: Promotion, spec: ModelSpec, weight: int) -> None:
    """Wait for a person before anybody is sent to the canary: there is nothing to watch meanwhile."""
    gate = Gate(plane, promotion, weight)
    patience = spec.promotion.deadline_seconds
    until = plane.clock.time() + patience
    while not gate():
        with plane.registry.turn(promotion.model) as turn:
            turn.mine(promotion)
        if plane.clock.time() >= until:
            raise ApprovalExpired(f"nobody has approved the first step within {duration(patience)}")
        plane.clock.sleep(APPROVAL_LOOK_SECONDS)


@step("shift to {weight} %")
def shift(plane: ControlPlane, promotion: Promotion, weight: int) -> None:
    """Traffic first, record second. A route that somebody else has changed is left as it is."""
    with plane.registry.turn(promotion.model) as turn:
        standing = turn.mine(promotion)
        routes = ramp(standing, weight)
        _free_hands(plane, standing, routes)
        turn.intend_route(routes)
        plane.platform.route(promotion.model, routes)
        turn.record_weight(promotion, weight)


@step("watch at {weight} %")
def watch_step(
    plane: ControlPlane, promotion: Promotion, spec: ModelSpec, weight: int, gate: int | None
) -> None:
    """Counters → judge, window after window, until it says advance or reject.

    `gate`: the next step, if that waits for a person; this one is watched on for as long as they think.
    """
    show = Progress(promotion, spec.promotion)
    if gate is None:
        watch(plane, promotion, spec.promotion, weight, show)
    else:
        watch(plane, promotion, spec.promotion, weight, show, Gate(plane, promotion, gate))


@step("make stable")
def crown(plane: ControlPlane, promotion: Promotion, spec: ModelSpec) -> None:
    """Canary → stable, stable → previous (kept warm), the one before is retired and its servers stop."""
    with plane.registry.turn(promotion.model) as turn:
        standing = turn.mine(promotion)
        if standing.promotion is not None and standing.promotion.state is State.WATCHING:
            return
        routes = settled(standing.canary, standing.stable, spec.promotion.hold_back)
        _free_hands(plane, standing, routes)
        turn.intend_route(routes)
        plane.platform.route(promotion.model, routes)
        turn.crown(promotion)
    if standing.previous is not None:
        plane.platform.stop(standing.previous)


@step("watch after 100 %")
def watch_after(plane: ControlPlane, promotion: Promotion, spec: ModelSpec) -> None:
    """Harm may need all of the traffic to show: the previous release stays warm meanwhile."""
    watch_on(plane, promotion, spec.promotion, Progress(promotion, spec.promotion))


@step("finish")
def finish(plane: ControlPlane, promotion: Promotion) -> str:
    """All of the traffic, hold-back included, and the books closed."""
    now = plane.registry.promotion(promotion.id)
    if now.state is State.PROMOTED:  # done before, but something after it was in the way
        plane.platform.settle(promotion.model)
        return now.reason or ""
    with plane.registry.turn(promotion.model) as turn:
        standing = turn.mine(promotion)
        routes = settled(standing.stable, standing.previous)
        _free_hands(plane, standing, routes)
        turn.intend_route(routes)
        plane.platform.route(promotion.model, routes)
        sentence = f"{promotion.model} v{promotion.version} is stable and serves everybody"
        turn.end(promotion, State.PROMOTED, sentence)
    plane.platform.settle(promotion.model)
    return sentence


def _free_hands(plane: ControlPlane, standing: Standing, routes: Routes) -> None:
    """Raise RouteConflict when somebody else has changed the route; the task is tried again a little later.

    What an interrupted step of our own may have left is no conflict: the route before it, or after it.
    """
    found = plane.platform.routes(standing.model)
    ours = (standing.route, routes, due(standing), settled(standing.stable), Routes())
    if found not in ours:
        raise RouteConflict(
            f"the route of {standing.model} was changed by somebody else to {dict(found.weights)}; "
            f"expected {dict(standing.route.weights)}: the promotion does not go on"
        )


@contextmanager
def driven(plane: ControlPlane, promotion: Promotion) -> Iterator[None]:
    """Renew the promotion's lease from a thread for as long as the body runs."""
    over = threading.Event()
    lease = plane.settings.lease_seconds

    def renew() -> None:
        while not over.wait(lease / 4):
            try:
                plane.registry.renew(promotion, lease)
            except DependencyDown:
                continue
            except PromotionLost:
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _go_back(plane: ControlPlane, promotion: Promotion, error: BaseException) -> Restored:
    state = _blame(error)
    if state is State.FAILED:
        return bring_home(plane, promotion, _one_line(error))
    return restore(plane, promotion.model, _one_line(error), state, only=promotion)


def _blame(error: BaseException) -> State:
    if isinstance(error, AGAINST_THE_RELEASE):
        return State.REJECTED
    if isinstance(error, PromotionUnproven):
        return State.UNPROVEN
    if isinstance(error, TerminationSignal | KeyboardInterrupt):
        return State.ABORTED
    return State.FAILED


def _one_line(error: BaseException) -> str:
    if isinstance(error, ModelServeError):
        return " ".join(str(error).split())
    if isinstance(error, TerminationSignal | KeyboardInterrupt):
        return "the flow run was cancelled"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
