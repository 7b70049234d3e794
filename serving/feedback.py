"""POST /feedback: what turned out to be true, for rows that this model has answered to this client."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from serving.errors import BadRequest, Invalid, NotFound, Unavailable
from serving.exchange import Answer, Call
from serving.inference.codec import invalid
from serving.personal import Personal
from serving.receipts import Receipts
from serving.redis.link import RedisAbsent
from serving.telemetry import Telemetry
from serving.watching.outcomes import OutcomeWriter, written

MOST_BYTES = 1 << 20
_SMALL_BYTES = 16 << 10
"""A body below this is parsed faster than a thread is woken."""
_MOST_OUTCOME_BYTES = 4096


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """Outcomes of an earlier answer: one a row, null where it is not known."""

    request_id: str
    outcomes: list[Any]


class Feedback:
    def __init__(
        self, receipts: Receipts, writer: OutcomeWriter, personal: Personal, telemetry: Telemetry
    ) -> None:
        self._personal = personal
        self._receipts = receipts
        self._writer = writer
        self._telemetry = telemetry

    async def answer(self, call: Call, report: Report) -> Answer:
        """202 with the number of outcomes by what became of them. NotFound, Invalid, Unavailable."""
        receipt = self._receipts.read(report.request_id, call.client)
        if receipt is None:
            self._telemetry.count("outcomes", 1, "refused")
            raise NotFound("no answer has this id, or it is too old; send X-Feedback-Id of the answer")
        if len(report.outcomes) > receipt.rows:
            self._telemetry.count("outcomes", 1, "refused")
            raise Invalid(
                f"{len(report.outcomes)} outcomes for {receipt.rows} answered rows", pointer="#/outcomes"
            )
        for row, outcome in enumerate(report.outcomes):
            if isinstance(outcome, str | list | dict) and len(written(outcome)) > _MOST_OUTCOME_BYTES:
                raise Invalid(
                    f"an outcome may have at most {_MOST_OUTCOME_BYTES} bytes", pointer=f"#/outcomes/{row}"
                )
        outcomes = [self._personal.outcome(outcome) for outcome in report.outcomes]
        try:
            kept = await self._writer.write(receipt.request, outcomes)
        except RedisAbsent:
            raise Unavailable(
                "the outcomes cannot be stored now; send them again", reason="redis", retry_after=5
            ) from None
        for word, rows in (("kept", kept.new), ("known", kept.known), ("conflicting", kept.conflicting)):
            self._telemetry.count("outcomes", rows, word)
        content = b'{"status":"accepted","kept":%d,"known":%d,"conflicting":%d}'
        return Answer(202, content % (kept.new, kept.known, kept.conflicting))


async def parsed(body: bytes) -> Report:
    """The report, checked. BadRequest or Invalid."""
    return _parsed(body) if len(body) < _SMALL_BYTES else await asyncio.to_thread(_parsed, body)


def _parsed(body: bytes) -> Report:
    try:
        report = msgspec.json.decode(body, type=Report)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not report.request_id or len(report.request_id) > 128:
        raise Invalid("request_id must have 1 to 128 characters", pointer="#/request_id")
    return report
