"""What one stretch of time may count for: requests that share a server share its fate.

A server pauses, a dependency blips, a client tries four times: the requests of that moment are bad together,
on whichever release it falls. The evidence of independent requests (`evidence.ratio_logs`) takes a single
pause for proof. So time is cut into stretches of half a tolerated pause, and a stretch counts

- at most nearly double (`COIN`). A pause hits a server; where the canary has no more servers than the
  stable, the chance that it is one of the canary's is at most a half, so that doubling is a fair bet. The bet
  belongs to the pause: adjacent stretches share it for as long as two pauses last;
- and at most as much again (`FORESEEN`) for what earlier stretches let expect: the canary's own bad requests
  so far, no more of them than the stable's and the ratio that is tested explain, both divided by how they
  clump, or than come steadily in every stretch;
- in full, where more than half of the canary's requests have been bad for longer than two tolerated pauses.

What speaks for the canary counts in full. Evidence is left out and never added, so that the promise (`alpha`)
is exact where requests are bad independently of each other given the hour, as it was. Where they come in
pauses it is an argument: the bet is fair as long as a pause of the stable's costs what one of the canary's
gains, which few requests at a low ratio do not, and earlier stretches may mislead. How well it holds is
simulated (`make bench-judge`). Pauses that last longer than tolerated, or that spare the stable again and
again, are harm of the release, and are meant to be found.

Arrays end in [windows, metrics], as in `evidence`; the first axis of logs is the ratio that is tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.domain.judge.evidence import WORSE, Array

COIN = 0.62
"""A fair bet would be log 2; the rest pays for pauses that are parted by the border of two slots."""
FORESEEN = 0.65
"""At most, when what is expected is well known: early, and where bad requests are rare, it is less, because a
pause that is spread over stretches looks like single bad requests."""
FLOOR, DENSE, AGE = 0.1, 4.0, 45.0
"""Its part from the beginning on, by each expected bad request, and by the time that is so many pauses."""
CHANCE = 3.0
"""How many standard deviations above what is expected are still expected."""
EVENTS = 2.0
"""More of them in every stretch are no pauses: they need not be explained by the stable's."""
LARGEST_RATIO = 10.0
"""The stable's bad requests explain at most this many times as many of the canary's."""
ENOUGH = 20
"""Requests of a clean stretch that part the pauses before and after it."""
LATELY = 16
"""So many stretches are the recent past: eight tolerated pauses."""
UNSEEN = 0.25
"""Added to the bad requests of the stable: however few there were, the next may be one."""
COARSE = 4
"""Clumps are also looked for in groups of so many stretches: two tolerated pauses."""
SURE = 0.84
"""Standard deviations of the upper limit for how bad requests clump."""
HARMLESS = 1.2
"""Clumps of this size are as good as none."""
DOUBT = 2.5
"""Standard deviations by which an outage must exceed two tolerated pauses."""


@dataclass(frozen=True)
class Stretches:
    """Windows grouped in stretches, and the windows at which one wants to know."""

    first: NDArray[np.intp]
    """The first window of each stretch."""
    of: NDArray[np.intp]
    """The stretch of each point."""
    ends: NDArray[np.intp]
    """The last point of each stretch."""
    slot: int
    """So many adjacent stretches may be one pause, or two of them."""
    every: bool
    """Whether every window is a point; else only the last one of each stretch."""

    def sums(self, amounts: Array, axis: int) -> Array:
        """Sums over each point's stretch, up to the point."""
        if len(self.first) == amounts.shape[axis]:
            return amounts
        if not self.every:
            return np.asarray(np.add.reduceat(amounts, self.first, axis=axis))
        sums = np.cumsum(amounts, axis=axis)
        before = np.take(sums - amounts, self.first, axis=axis)
        result: Array = sums - np.take(before, self.of, axis=axis)
        return result

    def ended(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values [..., P, G] at the ends of the stretches."""
        return np.take(values, self.ends, axis=-2) if self.every else values

    def earlier(self, values: NDArray[Any], back: int = 1) -> NDArray[Any]:
        """At each point, the value [..., P, G] at the end of an earlier stretch; 0 before the first."""
        return self.before(self.ended(values), back)

    def before(self, ended: NDArray[Any], back: int = 1) -> NDArray[Any]:
        """At each point, what `ended` [..., stretches, G] was at an earlier stretch; 0 before the first."""
        moved = np.zeros_like(ended)
        moved[..., back:, :] = ended[..., :-back, :]
        return np.take(moved, self.of, axis=-2) if self.every else moved


def stretches(seconds: Array, pause: float, *, every: bool) -> Stretches:
    """Group windows [..., T], alike in all runs, in stretches of half a pause; a longer window is one."""
    lengths = seconds.reshape(-1, seconds.shape[-1])[0].tolist()
    first, filled = [], math.inf
    for index, length in enumerate(lengths):
        if filled >= pause / 2 - 1e-6:
            first.append(index)
            filled = 0.0
        filled += length
    starts = np.array(first, dtype=np.intp)
    length = float(np.median(np.add.reduceat(np.array(lengths), starts)))
    slot = min(max(math.ceil(2 * pause / max(length, 1e-9) - 1e-6), 2), COARSE)
    if not every:
        order = np.arange(len(starts))
        return Stretches(starts, order, order, slot, every=False)
    new = np.zeros(len(lengths), dtype=np.intp)
    new[starts] = 1
    return Stretches(starts, np.cumsum(new) - 1, np.append(starts[1:], len(lengths)) - 1, slot, every=True)


@dataclass(frozen=True)
class Habit:
    """What an arm's earlier stretches let expect, at each point."""

    rate: Array
    """Bad requests per request, clumps counted once."""
    clump: Array
    """How many bad requests come together; 1 for single ones."""


def habit(groups: Stretches, bad: Array, requests: Array, unseen: float = 0.0) -> Habit:
    """`bad` [..., P, G] and `requests` [..., P], summed over their stretches; `unseen` bad ones are added.

    All stretches so far, or the last `LATELY` where these let expect more: a release may fall ill.
    """
    x, n = groups.ended(bad), groups.ended(requests[..., None])
    always = _habit(groups, x, n, x.shape[-2], unseen)
    if x.shape[-2] <= LATELY:
        return always
    lately = _habit(groups, x, n, LATELY, unseen)
    more = lately.rate > always.rate
    return Habit(np.where(more, lately.rate, always.rate), np.where(more, lately.clump, always.clump))


def _habit(groups: Stretches, x: Array, n: Array, horizon: int, unseen: float) -> Habit:
    total, asked, spread, count = _spread(x, n, horizon)
    mean = np.maximum(total / count, 1e-12)
    freedom = np.maximum(count - 1, 1)
    part = 2 / (9 * freedom)
    least = freedom * np.maximum(1 - part - SURE * np.sqrt(part), 0.05) ** 3
    # At most what the spread allows, and at most the whole of an average stretch in one clump.
    upper = np.where(count > 1, np.minimum(spread / mean / least, (spread / mean + mean) / freedom), mean)
    clump = np.maximum(np.maximum(groups.before(upper / HARMLESS), _coarse(groups, x, n, horizon)), 1)
    seen = groups.before(total) / clump + unseen
    return Habit(seen / np.maximum(groups.before(asked), 1), clump)


def _spread(x: Array, n: Array, horizon: int) -> tuple[Array, Array, Array, Array]:
    """Sums so far of bad requests and of requests, the squares around their common rate, and how many."""
    total, asked, squares, products, sizes = (_latest(one, horizon) for one in (x, n, x * x, x * n, n * n))
    rate = total / np.maximum(asked, 1)
    spread = squares - 2 * rate * products + rate * rate * sizes
    count = np.minimum(np.arange(1.0, x.shape[-2] + 1), horizon)[:, None]
    return total, asked, np.maximum(spread, 0), count


def _latest(amounts: Array, horizon: int) -> Array:
    """Sums over the last `horizon` stretches."""
    sums = np.cumsum(amounts, axis=-2)
    sums[..., horizon:, :] -= sums[..., :-horizon, :].copy()
    return sums


def _coarse(groups: Stretches, x: Array, n: Array, horizon: int) -> Array:
    """How bad requests clump over groups of stretches, as far as that is certain, at each point."""
    whole = x.shape[-2] // COARSE * COARSE
    if whole < 2 * COARSE:
        return np.ones(1)
    starts = np.arange(0, whole, COARSE)
    x, n = (np.add.reduceat(one[..., :whole, :], starts, axis=-2) for one in (x, n))
    total, _, spread, count = _spread(x, n, max(horizon // COARSE, 1))
    freedom = count - 1
    lower = spread / np.maximum(total / count, 1e-12) / np.maximum(freedom + np.sqrt(2 * freedom), 1)
    known = np.concatenate([np.ones_like(lower[..., :1, :]), lower], axis=-2)
    result: Array = np.take(known, groups.of // COARSE, axis=-2)
    return result


def counted(
    groups: Stretches,
    logs: Array,
    gains: Array,
    bad: Array,
    requests: Array,
    own: Habit,
    other: Habit,
    seconds: Array,
    pause: float,
) -> Array:
    """log e of everything so far, at each point [ratios, ..., P, G].

    All arguments are sums over their stretches, at each point: `logs` [ratios, ..., P, G] as of independent
    requests, `gains` [ratios, ..., P, 1] what one more bad request adds to them, `bad` and `requests` of the
    canary, `own` and `other` what it and the stable were like before, `seconds` [..., P].
    """
    asked = requests[..., None]
    explained = np.minimum(WORSE, LARGEST_RATIO).reshape(-1, *(1,) * bad.ndim)
    shown = own.rate * asked
    usual = np.minimum(shown, np.maximum(explained * other.rate * asked, shown - EVENTS))
    damping = np.maximum(own.clump, other.clump) ** 2
    expected = usual + CHANCE * np.sqrt(usual) / damping
    passed = groups.before(np.cumsum(groups.ended(seconds[..., None]), axis=-2)) / pause
    trust = np.minimum(FLOOR + DENSE * usual + passed / AGE, 1)
    foreseen = np.clip(logs - (bad - expected) * gains, 0, FORESEEN * trust)
    coins = _coins(groups, np.clip(logs - foreseen, 0, COIN), asked)
    credit = np.where(logs > 0, np.minimum(logs, foreseen + coins), logs)
    credit = credit + _outages(groups, logs - credit, gains, bad, asked, seconds[..., None], pause)
    return added_up(groups, credit)


def _coins(groups: Stretches, staked: Array, asked: Array) -> Array:
    """What of `staked` counts: in up to `slot` adjacent stretches, which may be one pause, a coin at most.

    A stretch that is adjacent to none before begins anew. A clean stretch parts two bad ones when its
    requests are enough to tell that the pause was over.
    """
    place = groups.of[:, None]
    hot, parted = staked > 0, asked >= ENOUGH
    ended = groups.ended(hot)
    joined, open_ = np.zeros(hot.shape, dtype=bool), np.ones(1, dtype=bool)
    for back in range(1, groups.slot):
        before = groups.earlier(hot, back)
        joined |= before & open_
        open_ = open_ & ~(~before & groups.earlier(parted, back))
    anew = ended & ~groups.ended(joined)
    order = np.arange(ended.shape[-2])[:, None]
    begun = np.maximum.accumulate(np.where(anew, order, 0), axis=-2)
    start = np.where(joined, groups.before(begun), place)
    start = place - (place - start) % groups.slot
    spent = np.zeros(1)
    for back in range(1, groups.slot):
        spent = spent + groups.earlier(staked, back) * (place - back >= start)
    return np.asarray(np.minimum(spent + staked, COIN) - np.minimum(spent, COIN))


def added_up(groups: Stretches, credit: Array) -> Array:
    """Sums over all stretches so far, at each point [..., P, G]."""
    result: Array = groups.before(np.cumsum(groups.ended(credit), axis=-2)) + credit
    return result


def recent(groups: Stretches, logs: Array) -> Array:
    """Sums over the last two tolerated pauses, at each point [..., P, G]."""
    sums = added_up(groups, logs)
    result: Array = sums - groups.earlier(sums, COARSE)
    return result


def _outages(
    groups: Stretches, left_out: Array, gains: Array, bad: Array, asked: Array, seconds: Array, pause: float
) -> Array:
    """What was left out and is no pause, since most requests have been bad for longer than two of them."""
    failing, silent = bad > asked / 2, np.broadcast_to(asked == 0, bad.shape)
    if not failing.any():
        return np.zeros(1)
    ended, still = groups.ended(failing), groups.ended(silent)
    order = np.arange(ended.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(still, 0, order), axis=-2)
    running = np.take_along_axis(ended, np.broadcast_to(last, ended.shape), axis=-2)
    before = groups.before(running)
    now = failing | (silent & before)
    length, all_, failed, lacking = (
        _of_run(groups, np.broadcast_to(amounts, np.broadcast_shapes(amounts.shape, now.shape)), now, before)
        for amounts in (seconds, asked, bad, left_out)
    )
    part = np.minimum(2 * pause / np.maximum(length, 1e-9), 1)
    beyond = failed - all_ * part - DOUBT * np.sqrt(all_ * part * (1 - part))
    due = np.where(now, np.minimum(lacking, np.maximum(beyond, 0) * gains), 0)
    result: Array = due - np.where(now & before, groups.earlier(due), 0)
    return result


def _of_run(groups: Stretches, amounts: Array, now: NDArray[np.bool_], before: NDArray[np.bool_]) -> Array:
    """Sums of non-negative amounts since the run of stretches began to which each point belongs."""
    within = np.where(now, amounts, 0)
    ended = groups.ended(within)
    sums = np.cumsum(ended, axis=-2)
    begun = ~groups.ended(now & before)
    since = sums - np.maximum.accumulate(np.where(begun, sums - ended, 0), axis=-2)
    result: Array = within + np.where(now & before, groups.before(since), 0)
    return result
