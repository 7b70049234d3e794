"""Replays real rows through the gateway as live traffic, and sends their outcomes back a little later.

    python -m flows.demo.traffic --rows FILE --model flights --rate 150 --statistics FILE

It runs as a process of its own beside everything else on a small machine. So it knows no Prefect and no
pandas, and uses aiohttp, which takes less than half of the processor time of httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TextIO

import aiohttp
import uvloop

from flows.demo.traffic_rows import Selection
from flows.demo.traffic_statistics import Statistics
from flows.demo.traffic_users import Replay, Users
from flows.domain.errors import ModelServeError


def run(replay: Replay) -> Statistics:
    """Replay until it is done, or until SIGTERM or SIGINT. ModelServeError when it cannot begin."""
    for path in (replay.statistics, replay.log):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(replay.log) as log, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_replay(replay, log))


async def _replay(replay: Replay, log: TextIO | None) -> Statistics:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
        timeout=aiohttp.ClientTimeout(total=replay.timeout),
        # Every request is another user: a cookie of an A/B test must not keep them all on one release.
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    async with session:
        users = Users(replay, session, log)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, users.stop)
        background = [loop.create_task(users.report()), loop.create_task(users.send_outcomes())]
        for task in background:
            task.add_done_callback(lambda _: users.stop())  # Only an error ends them early, a full disk.
        try:
            await users.wait_for_a_release()
            await users.send_rows()
            await users.finish()
        finally:
            for task in background:
                task.cancel()
            ended = await asyncio.gather(*background, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError) and isinstance(error, BaseException):
                raise error
        users.write()
        return users.statistics


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
    else:
        with path.open("w", encoding="utf-8") as log:
            yield log


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0 when the replay ran to its end or was told to stop, 1 when it could not run."""
    given = _parser().parse_args(arguments)
    replay = Replay(
        rows=given.rows,
        model=given.model,
        gateway=given.gateway,
        rate=given.rate,
        duration=given.duration,
        selection=Selection(given.since, given.until, given.sample),
        repeat=given.repeat,
        concurrency=given.concurrency,
        timeout=given.timeout,
        feedback=not given.no_feedback,
        feedback_delay=given.feedback_delay,
        wait=given.wait,
        statistics=given.statistics,
        log=given.log,
        progress=not given.quiet,
    )
    try:
        statistics = run(replay)
    except (ModelServeError, OSError) as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 1
    print(f"{statistics.line()}; {statistics.sent} sent, {statistics.failed} failed", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.demo.traffic",
        description="Replay real rows through the gateway as live traffic and send their outcomes back.",
    )
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="Parquet file with columns at, outcome and the inputs")
    add("--model", required=True)
    add("--gateway", default=Replay.gateway, help="default: %(default)s")
    add("--rate", type=_positive, default=Replay.rate, help="requests a second; default: %(default)s")
    add("--duration", type=_positive, help="seconds; default: until the rows end or SIGTERM")
    add("--since", type=date.fromisoformat, metavar="YYYY-MM-DD", help="first day of the rows")
    add("--until", type=date.fromisoformat, metavar="YYYY-MM-DD", help="day after the last one")
    add("--sample", type=_positive, default=1.0, help="share of the rows that is sent, up to 1")
    add("--repeat", action="store_true", help="start again when the rows end")
    add("--concurrency", type=int, default=Replay.concurrency, help="most requests that wait for an answer")
    add("--timeout", type=_positive, default=Replay.timeout, help="seconds; default: %(default)s")
    add("--no-feedback", action="store_true", help="do not send outcomes")
    add("--feedback-delay", type=float, default=Replay.feedback_delay, help="seconds; default: %(default)s")
    add("--wait", type=float, default=Replay.wait, help="seconds to wait until a release answers")
    add("--statistics", type=Path, help="JSON file, replaced every second")
    add("--log", type=Path, help="file for one JSON line a request")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
