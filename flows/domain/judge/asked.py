"""Gates that a model asks for beside the ones that every promotion has.

Their counters belong to somebody else: a shop's, an application's. They are named here by PromQL selectors,
and read raw as all others are.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from flows.domain.release import parse_release_name

_MATCHER = r'\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"\s*'
_SELECTOR = re.compile(rf"[a-zA-Z_:][a-zA-Z0-9_:]*\s*\{{{_MATCHER}(?:,{_MATCHER})*,?\s*\}}")
_PLACES = re.compile(r"\$\w*")
_KNOWN = ("$model", "$release", "$version")


class Metric(BaseModel):
    """A pair of counters in Prometheus, by release: refunds of orders, empty answers of answers.

    Compared as errors are: bad ones in proportion to all of them, canary against stable, a server's pause
    counting once. Bad ones count when they come, so that slow ones (a refund after a week) speak too late.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    """The gate's name in verdicts, tables and reports."""
    bad: str
    """Selector of the counter of bad ones, such as `shop_refunds_total{release="$release"}`."""
    total: str
    """Selector of the counter of all. `$release` is `flights-v2`, `$model` and `$version` are its parts."""
    what: str = ""
    """What the bad ones did, for sentences: `orders were refunded`. Default: `counted as NAME`."""
    weight: float = Field(default=1, gt=0)
    """Its share of `alpha` among `weights`."""

    @field_validator("bad", "total")
    @classmethod
    def _is_one_selector_of_a_release(cls, text: str) -> str:
        if _SELECTOR.fullmatch(text.strip()) is None:
            raise ValueError(
                'must be one selector, such as shop_refunds_total{release="$release"}: a name and matchers; '
                "raw counters are read, so without functions, ranges and sums"
            )
        unknown = sorted(set(_PLACES.findall(text)).difference(_KNOWN) - {"$"})
        if unknown:
            raise ValueError(f"{unknown[0]} stands for nothing; there are {', '.join(_KNOWN)}")
        if "$release" not in text and "$version" not in text:
            raise ValueError('tells no release from another: add a matcher such as release="$release"')
        return text.strip()

    @field_validator("total")
    @classmethod
    def _bad_ones_are_not_all(cls, total: str, info: ValidationInfo) -> str:
        if total == info.data.get("bad"):
            raise ValueError("is the same as bad: everything would be bad")
        return total

    def selector(self, side: Literal["bad", "total"], release: str) -> str:
        """PromQL for the counters of this release, every series of them."""
        model, version = parse_release_name(release)
        text = self.bad if side == "bad" else self.total
        values = {"$model": model, "$release": release, "$version": str(version)}
        return _PLACES.sub(lambda found: values.get(found.group(), found.group()), text)

    @property
    def words(self) -> str:
        return self.what or f"counted as {self.name}"


class Outcomes(BaseModel):
    """Delayed truth (`POST /feedback`), canary against stable: a release may be healthy and wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    loss: Literal["log", "absolute", "squared", "wrong"]
    """`log`: of the probability that the prediction gave to the outcome (one number: of `1`, `true`; several:
    of the class with that number). `absolute`, `squared`: of the difference. `wrong`: 1 where they differ."""
    prediction: str | None = None
    """Output that is compared; default: the only one."""
    scale: float = Field(default=1.0, gt=0)
    """The largest error that counts as more wrong than a smaller one, for `absolute` and `squared`."""
    max_worse: float = Field(default=0.01, gt=0, lt=1)
    """Tolerated difference of the mean losses, as a part of the largest one (4.6 for `log`, else `scale`)."""
    required: int = Field(default=0, ge=0)
    """Outcomes of the canary that must be known before it is certified. 0: certification does not wait."""
    weight: float = Field(default=0, ge=0)
    """0: a canary that is proven wrong is held, until it is not or the deadline comes. Else it is rejected,
    and this is the gate's share of `alpha` among `weights`."""
