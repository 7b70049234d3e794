"""Gates that a model asks for: segments, metrics of its own. What they find, and what must not move them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flows.domain.errors import SpecInvalid
from flows.domain.judge.counters import Series, Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.plan import plan
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Pair, Window
from flows.domain.spec import ModelSpec, parse_spec

SPEC = """
name: flights
signature:
  inputs:
    - {{name: country, type: string, categories: [FR, DE, US, MT]}}
    - {{name: member, type: boolean}}
    - {{name: weekday, type: integer, minimum: 0, maximum: 6}}
    - {{name: age, type: integer, minimum: 0, maximum: 120}}
    - {{name: word, type: string}}
    - {{name: email, type: string, categories: [a, b], personal: hash}}
    - {{name: x, type: number, shape: [3]}}
  outputs: [{{name: y, type: number}}]
promotion: {promotion}
"""
COUNTRIES = {
    "country=FR": 0.5,
    "country=DE": 0.3,
    "country=US": 0.19,
    "country=MT": 0.005,
    "country=other": 0.005,
}
REFUNDS = """{metrics: [{name: refunds, bad: 'shop_refunds_total{release="$release"}',
  total: 'shop_orders_total{release="$release"}', what: orders were refunded}]}"""


def parsed(promotion: str) -> ModelSpec:
    return parse_spec(SPEC.format(promotion=promotion), "model.yaml")


def seen(requests: int, errors: int = 0, **more: object) -> Counts:
    return Counts(requests, errors, predicted=requests - errors, refused=0, sent=requests, **more)  # type: ignore[arg-type]


def by_country(random: np.random.Generator, requests: int, rates: dict[str, float]) -> Counts:
    """One arm's window: requests by country, each failing at its rate."""
    parts = random.multinomial(requests, list(COUNTRIES.values()))
    pairs: dict[str, Pair] = {
        name: (int(random.binomial(part, rates.get(name, 0.01))), int(part))
        for name, part in zip(COUNTRIES, parts, strict=True)
    }
    return seen(requests, sum(bad for bad, _ in pairs.values()), segments=pairs)


def segment_ramp(seed: int, rps: float, sick: dict[str, float], minutes: float = 15) -> list[Window]:
    """The default ramp's three steps, in windows of ten seconds."""
    random = np.random.default_rng(seed)
    windows = []
    for at in range(int(minutes * 6)):
        weight = (5, 25, 50)[min(at // 30, 2)]
        total = int(random.poisson(rps * 10))
        part = int(random.binomial(total, weight / 100))
        canary, stable = by_country(random, part, sick), by_country(random, total - part, {})
        windows.append(Window(10.0 * at, 10.0 * at + 10, weight, canary, stable))
    return windows


def ever(policy: PromotionPolicy, windows: list[Window], every: int = 3) -> tuple[Verdict, list[Window]]:
    for number in range(every, len(windows) + 1, every):
        verdict = judge(policy, windows[:number])
        if verdict.kind == "reject":
            break
    return verdict, windows[:number]


def test_a_canary_that_fails_for_one_user_in_two_hundred_is_found_and_named() -> None:
    """Among all requests 1.5 % fail instead of 1 %: nothing that ten minutes could tell."""
    policy = parsed("{segments: [country], window_seconds: 10}").promotion
    for seed in range(10):
        verdict, windows = ever(policy, segment_ramp(seed, 100, {"country=MT": 1.0}))
        assert (verdict.kind, verdict.metric) == ("reject", "segments"), verdict
        assert "requests with country=MT failed on the canary (100 %)" in verdict.sentence
        shown = spoken(policy, windows, verdict)
        assert (shown.gate, shown.what) == ("segments", "requests with country=MT failed")
        assert shown.totals == (
            (verdict.canary_bad, verdict.canary_total),
            (verdict.stable_bad, verdict.stable_total),
        )


def test_a_rejection_for_errors_names_the_users_who_have_nearly_all_of_them() -> None:
    policy = parsed("{segments: [country], window_seconds: 10}").promotion
    healthy = {"country=FR": (0, 500), "country=DE": (0, 450), "country=MT": (0, 50)}
    sick = {**healthy, "country=MT": (50, 50)}
    windows = [
        Window(10.0 * at, 10.0 * at + 10, 50, seen(1000, 50, segments=sick), seen(1000, segments=healthy))
        for at in range(30)
    ]
    verdict, _ = ever(policy, windows, 1)
    assert verdict.kind == "reject"
    assert "requests with country=MT failed" in verdict.sentence


@pytest.mark.parametrize("hiccups", [0.0, 4.0], ids=["independent", "bursts"])
def test_healthy_canaries_are_rarely_rejected_for_a_segment(hiccups: float) -> None:
    """Single errors; in the second case also pauses, in which all requests of a second fail together."""
    policy = parsed("{segments: [country], window_seconds: 10}").promotion
    random = np.random.default_rng(5)
    rejected = 0
    for seed in range(100):
        windows = []
        for one in segment_ramp(seed, 50, {}):
            arms = [one.canary, one.stable or Counts()]
            for side in (0, 1):
                if random.random() < hiccups * 10 / 3600:
                    paused = by_country(
                        random,
                        int(50 * one.share) if side == 0 else int(50 * (1 - one.share)),
                        dict.fromkeys(COUNTRIES, 1.0),
                    )
                    arms[side] = arms[side] + paused
            windows.append(Window(one.start, one.end, one.weight, *arms))
        rejected += ever(policy, windows, 9)[0].kind == "reject"
    assert rejected <= 1


def test_alpha_is_shared_among_the_values() -> None:
    """The same failures of one value are less evidence where more values are looked at."""
    policy = parsed(
        "{segments: [country], weights: {errors: 0, latency: 0, outputs: 0, client_errors: 1, missing: 0}}"
    ).promotion

    def evidence(values: int) -> float:
        others = {f"country={at}": (0, 0) for at in range(values - 1)}
        bad, good = (
            seen(500, 10, segments={"country=MT": (10, 20), **others}),
            seen(500, segments={"country=MT": (0, 20), **others}),
        )
        windows = [Window(10.0 * at, 10.0 * at + 10, 50, bad, good) for at in range(3)]
        return judge(policy, windows).evidence

    assert 4 < (evidence(1) - 0.5) / (evidence(10) - 0.95) < 12


def refund_ramp(seed: int, rate: float, minutes: int = 15) -> list[Window]:
    random = np.random.default_rng(seed)
    windows = []
    for at in range(minutes * 6):
        weight = (5, 25, 50)[min(at // 30, 2)]
        arms = []
        for part, share in ((weight / 100, rate), (1 - weight / 100, 0.02)):
            orders = int(random.poisson(200 * part))
            refunds = {"refunds": (int(random.poisson(orders * share)), orders)}
            arms.append(seen(max(orders, 1), metrics=refunds))
        windows.append(Window(10.0 * at, 10.0 * at + 10, weight, *arms))
    return windows


def test_a_canary_whose_orders_are_refunded_is_rejected_by_the_metrics_name() -> None:
    policy = parsed(REFUNDS).promotion
    for seed in range(10):
        verdict, windows = ever(policy, refund_ramp(seed, 0.10))
        assert (verdict.kind, verdict.metric) == ("reject", "refunds")
        assert "orders were refunded on the canary" in verdict.sentence
        shown = spoken(policy, windows, verdict)
        assert shown.totals[0] == (verdict.canary_bad, verdict.canary_total)


@pytest.mark.parametrize("hiccups", [0.0, 4.0], ids=["independent", "bursts"])
def test_healthy_canaries_are_rarely_rejected_for_a_metric(hiccups: float) -> None:
    """In the second case everything that an arm takes in a second is refunded, four times an hour."""
    policy = parsed(REFUNDS).promotion
    random = np.random.default_rng(7)
    rejected = 0
    for seed in range(100):
        windows = []
        for one in refund_ramp(seed, 0.02):
            arms = [one.canary, one.stable or Counts()]
            for side, arm in enumerate(arms):
                if random.random() < hiccups * 10 / 3600:
                    refunds, orders = arm.metrics["refunds"]
                    burst = min(orders - refunds, orders // 10)
                    arms[side] = arm + Counts(predicted=0, refused=0, sent=0, metrics={"refunds": (burst, 0)})
            windows.append(Window(one.start, one.end, one.weight, *arms))
        rejected += ever(policy, windows, 9)[0].kind == "reject"
    assert rejected <= 1


@pytest.mark.parametrize(
    ("promotion", "says"),
    [
        (REFUNDS, "promotion.metrics: refunds counts nothing of the canary at this step"),
        ("{segments: [country]}", "promotion.segments: the canary's servers do not count by country"),
    ],
)
def test_what_is_asked_for_and_counted_by_nobody_holds(promotion: str, says: str) -> None:
    """A wrong name in a selector, an image of before: silence is no health."""
    policy = parsed(promotion).promotion
    windows = [Window(10.0 * at, 10.0 * at + 10, 5, seen(500), seen(9500)) for at in range(60)]
    verdict = judge(policy, windows)
    assert (verdict.kind, verdict.metric) == ("hold", "metrics") or says in verdict.sentence, verdict
    assert says in verdict.sentence


@pytest.mark.parametrize(
    ("promotion", "message"),
    [
        ("{segments: [city]}", "promotion.segments: city is no input; there are country, member"),
        ("{segments: [word]}", "promotion.segments: the signature does not say which values word has"),
        ("{segments: [x]}", "promotion.segments: the signature does not say which values x has"),
        ("{segments: [age]}", "promotion.segments: age has more than 50 values"),
        ("{segments: [email]}", "promotion.segments: email is personal"),
        ("{segments: [country, country]}", "promotion.segments: a column stands twice"),
        ("{segments: [country], weights: {segments: 0}}", "promotion.segments: weights.segments is 0"),
        (
            "{metrics: [{name: r, bad: 'rate(a{v=\"$release\"}[5m])', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics.0.bad: must be one selector",
        ),
        (
            "{metrics: [{name: r, bad: 'a{v=\"$release\"', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics.0.bad: must be one selector",
        ),
        (
            "{metrics: [{name: r, bad: 'a{v=\"1\"}', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics.0.bad: tells no release from another",
        ),
        (
            "{metrics: [{name: r, bad: 'a{v=\"$relase\"}', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics.0.bad: $relase stands for nothing",
        ),
        (
            "{metrics: [{name: r, bad: 'a{v=\"$release\"}', total: 'a{v=\"$release\"}'}]}",
            "promotion.metrics.0.total: is the same as bad",
        ),
        (
            "{metrics: [{name: errors, bad: 'a{v=\"$release\"}', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics: errors is the name of another gate",
        ),
        (
            "{metrics: [{name: time, bad: 'a{v=\"$release\"}', total: 'b{v=\"$release\"}'}]}",
            "promotion.metrics: time is the name of another gate",
        ),
    ],
)
def test_a_gate_that_cannot_be_looked_at_is_refused_by_its_key(promotion: str, message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parsed(promotion)
    assert message in str(caught.value)


def test_columns_whose_values_are_known_are_taken() -> None:
    for column in ("country", "member", "weekday"):
        assert parsed(f"{{segments: [{column}]}}").promotion.segments == (column,)


def test_the_plan_says_how_alpha_is_shared() -> None:
    assert not any("gates get" in sentence for sentence in plan(PromotionPolicy(), 100, 0.01).sentences)
    policy = parsed("{segments: [country]}").promotion
    [shared] = [one for one in plan(policy, 100, 0.01).sentences if "gates get" in one]
    assert "segments 8.3 %" in shared
    assert shared.endswith("all values of country share that of segments")


def test_series_of_ones_own_are_counted_by_release_and_a_restart_is_seen() -> None:
    """Two series of one counter, one of which begins again; and the stable's first refund, whose process was
    known by its orders."""

    def moment(at: float, values: dict[tuple[str, str, str, str], float]) -> Snapshot:
        gate = {Series("requests", name, "2", "gate"): at for name in ("m-v1", "m-v2")}
        own = {Series(*key): value for key, value in values.items()}
        return Snapshot(at, {**gate, **own}, {"gate": at})

    def key(side: str, version: int, pod: str) -> tuple[str, str, str, str]:
        return side, f"m-v{version}", f'refunds{{pod="{pod}"}}', pod

    before = moment(100, {key("total", 1, "a"): 50, key("total", 2, "a"): 10, key("total", 2, "b"): 100})
    after = moment(
        110,
        {
            key("total", 1, "a"): 60,
            key("bad", 1, "a"): 1,
            key("total", 2, "a"): 15,
            key("total", 2, "b"): 3,
            key("bad", 2, "b"): 2,
        },
    )
    window = difference(before, after, "m-v2", "m-v1", 5)
    assert window.observed, window.why
    assert window.canary.metrics == {"refunds": (2, 8)}
    assert window.stable is not None
    assert window.stable.metrics == {"refunds": (1, 10)}
    assert not window.canary.reported, "a shop that counts refunds is no server of the release"
    assert Window.from_json(json.loads(json.dumps(window.to_json()))) == window
