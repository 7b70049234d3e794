"""The state of jobs in PostgreSQL, which survives every replica.

Who runs a job holds a lease that it renews, by the database's clock. Taking a job raises its fencing number,
and every later statement names it: whoever has lost the job changes nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "cancelled"]

MOST_TRIES = 5
"""So often a replica may be lost over a job without a chunk being finished; then the job is to blame."""
_CONNECT_SECONDS = 3
_STATEMENT_MILLISECONDS = 5_000
_SILENT_MILLISECONDS = 8_000
_SCHEMA_LOCK = 0x6A6F6273
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_jobs (
    id text PRIMARY KEY,
    model text NOT NULL,
    version text NOT NULL,
    bundle text NOT NULL,
    owner text NOT NULL,
    idempotency_key text,
    request text NOT NULL,
    source_uri text,
    source_format text,
    chunk_rows integer NOT NULL,
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    rows bigint,
    split_fence bigint NOT NULL DEFAULT 0,
    rows_done bigint NOT NULL DEFAULT 0,
    rows_failed bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    lease_until timestamptz,
    tries integer NOT NULL DEFAULT 0,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    served_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS batch_jobs_key ON batch_jobs (model, owner, idempotency_key);
CREATE INDEX IF NOT EXISTS batch_jobs_open ON batch_jobs (model, version, created_at)
    WHERE state IN ('queued', 'running');
CREATE TABLE IF NOT EXISTS batch_chunks (
    job text NOT NULL REFERENCES batch_jobs ON DELETE CASCADE,
    number integer NOT NULL,
    fence bigint NOT NULL,
    rows integer NOT NULL,
    failed integer NOT NULL,
    PRIMARY KEY (job, number)
);
"""
_COLUMNS = (
    "id, version, owner, request, source_uri, source_format, chunk_rows, state, rows, split_fence, "
    "rows_done, rows_failed, fence, error, created_at, started_at, finished_at"
)


class DatabaseAway(Exception):
    """PostgreSQL does not answer."""


class LeaseLost(Exception):
    """Somebody else runs the job now, or nobody should any more."""


@dataclass(frozen=True)
class Job:
    id: str
    version: str
    owner: str
    request: str
    """sha256 of what the client sent."""
    source_uri: str | None
    source_format: str | None
    chunk_rows: int
    state: State
    rows: int | None
    """None until the input has been split."""
    split_fence: int
    rows_done: int
    rows_failed: int
    fence: int
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def chunks(self) -> int:
        return -(-(self.rows or 0) // self.chunk_rows)


@dataclass(frozen=True)
class Release:
    """Whose jobs a replica runs: results of one job come from one model."""

    model: str
    version: str
    bundle: str


class JobTable:
    """One connection, used by one thread. Every method raises DatabaseAway when PostgreSQL is not there."""

    def __init__(self, url: str, release: Release, lease_seconds: float) -> None:
        self._url = url
        self._release = release
        self._lease = lease_seconds
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(1, "jobs-database")

    # ---- clients

    async def add(
        self,
        job: str,
        owner: str,
        key: str | None,
        request: str,
        chunk_rows: int,
        *,
        rows: int | None = None,
        source_uri: str | None = None,
        source_format: str | None = None,
    ) -> Job:
        """The new job, or the one that the key already stands for."""
        model, version, bundle = self._release.model, self._release.version, self._release.bundle
        await self._rows(
            "INSERT INTO batch_jobs (id, model, version, bundle, owner, idempotency_key, request, chunk_rows,"
            " rows, source_uri, source_format) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (job, model, version, bundle, owner, key, request, chunk_rows, rows, source_uri, source_format),
        )
        added = await self.find(job, owner)
        found = added if added is not None or key is None else await self.by_key(key, owner)
        if found is None:
            raise DatabaseAway("the new job cannot be read")
        return found

    async def by_key(self, key: str, owner: str) -> Job | None:
        return _one(
            await self._rows(
                f"SELECT {_COLUMNS} FROM batch_jobs WHERE model = %s AND owner = %s AND idempotency_key = %s",
                (self._release.model, owner, key),
            )
        )

    async def find(self, job: str, owner: str) -> Job | None:
        """A job of this model, whichever release runs it."""
        return _one(
            await self._rows(
                f"SELECT {_COLUMNS} FROM batch_jobs WHERE id = %s AND model = %s AND owner = %s",
                (job, self._release.model, owner),
            )
        )

    async def cancel(self, job: str, owner: str) -> None:
        """Whoever runs it notices at its next statement."""
        await self._rows(
            "UPDATE batch_jobs SET state = 'cancelled', finished_at = now(), lease_until = NULL"
            " WHERE id = %s AND model = %s AND owner = %s AND state IN ('queued', 'running')",
            (job, self._release.model, owner),
        )

    async def waiting(self) -> int:
        """Jobs of this release that nobody runs yet."""
        [(number,)] = await self._rows(
            "SELECT count(*) FROM batch_jobs"
            " WHERE model = %s AND version = %s AND bundle = %s AND state = 'queued'",
            self._identity(),
        )
        return int(number)

    async def stand_by(self) -> int:
        """Say that the release is there for what waits; how many those are."""
        found = await self._rows(
            "UPDATE batch_jobs SET served_at = now()"
            " WHERE model = %s AND version = %s AND bundle = %s AND state = 'queued' RETURNING 1",
            self._identity(),
        )
        return len(found)

    async def chunk_fences(self, job: str) -> dict[int, int]:
        """The fencing number by chunk, of the chunks whose results are there."""
        rows = await self._rows(
            "SELECT number, fence FROM batch_chunks WHERE job = %s ORDER BY number", (job,)
        )
        return dict(rows)

    # ---- the replica that runs it

    async def take(self) -> Job | None:
        """The oldest job of this release that nobody runs, or whose runner has let its lease pass."""
        return _one(
            await self._rows(
                "UPDATE batch_jobs SET state = 'running', fence = fence + 1, tries = tries + 1,"
                " lease_until = now() + %s * interval '1 second', started_at = coalesce(started_at, now())"
                " WHERE id = (SELECT id FROM batch_jobs"
                "   WHERE model = %s AND version = %s AND bundle = %s AND tries < %s"
                "     AND (state = 'queued' OR state = 'running' AND lease_until < now())"
                "   ORDER BY created_at, id FOR UPDATE SKIP LOCKED LIMIT 1)"
                f" RETURNING {_COLUMNS}",
                (self._lease, *self._identity(), MOST_TRIES),
            )
        )

    async def renew(self, job: Job) -> None:
        """LeaseLost when the job is not ours any more; so do all that follow."""
        await self._held("lease_until = now() + %s * interval '1 second'", (self._lease,), job)

    async def split(self, job: Job, rows: int) -> None:
        await self._held("rows = %s, split_fence = fence", (rows,), job)

    async def finish_chunk(self, job: Job, number: int, rows: int, failed: int) -> None:
        found = await self._rows(
            "WITH held AS (SELECT id, fence FROM batch_jobs"
            "   WHERE id = %s AND fence = %s AND state = 'running' FOR UPDATE),"
            " chunk AS (INSERT INTO batch_chunks SELECT id, %s, fence, %s, %s FROM held"
            "   ON CONFLICT DO NOTHING RETURNING job, rows, failed)"
            " UPDATE batch_jobs SET rows_done = rows_done + chunk.rows,"
            "   rows_failed = rows_failed + chunk.failed, tries = 0,"
            "   lease_until = now() + %s * interval '1 second'"
            " FROM chunk WHERE id = chunk.job RETURNING 1",
            (job.id, job.fence, number, rows, failed, self._lease),
        )
        if not found:
            raise LeaseLost

    async def finish(self, job: Job) -> None:
        await self._held("state = 'done', finished_at = now(), lease_until = NULL", (), job)

    async def fail(self, job: Job, error: str) -> None:
        changes = "state = 'failed', error = %s, finished_at = now(), lease_until = NULL"
        await self._held(changes, (error,), job)

    async def release(self, job: Job) -> None:
        """Give it back before its time; another replica goes on at once."""
        await self._held("state = 'queued', tries = tries - 1, lease_until = NULL", (), job)

    async def bury(self, gone_seconds: float) -> None:
        """Fail jobs of the model that break their replicas, and those whose release is not there any more."""
        await self._rows(
            "UPDATE batch_jobs SET state = 'failed', finished_at = now(), lease_until = NULL,"
            " error = CASE WHEN tries >= %s THEN 'every replica that ran it was lost'"
            "   ELSE 'its release is not served any more; send it again' END"
            " WHERE model = %s AND (state = 'running' AND lease_until < now() AND tries >= %s"
            "   OR state IN ('queued', 'running') AND greatest(served_at, lease_until)"
            "     < now() - %s * interval '1 second')",
            (MOST_TRIES, self._release.model, MOST_TRIES, gone_seconds),
        )

    async def forget(self, keep_seconds: float) -> list[str]:
        """Drop what ended that long ago; the ids, whose files can go."""
        rows = await self._rows(
            "DELETE FROM batch_jobs WHERE model = %s AND finished_at < now() - %s * interval '1 second'"
            " RETURNING id",
            (self._release.model, keep_seconds),
        )
        return [job for (job,) in rows]

    async def close(self) -> None:
        def end() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, end)
        self._thread.shutdown(wait=False)

    def _identity(self) -> tuple[str, str, str]:
        return self._release.model, self._release.version, self._release.bundle

    async def _held(self, changes: str, values: tuple[object, ...], job: Job) -> None:
        found = await self._rows(
            f"UPDATE batch_jobs SET {changes} WHERE id = %s AND fence = %s AND state = 'running' RETURNING 1",
            (*values, job.id, job.fence),
        )
        if not found:
            raise LeaseLost

    async def _rows(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._execute, statement, values
        )

    def _execute(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        import psycopg2  # here because servers without jobs need not import it

        for again in (True, False):
            try:
                if self._connection is None:
                    self._connection = _connected(self._url)
                with self._connection.cursor() as cursor:
                    cursor.execute(statement, values)
                    return cursor.fetchall() if cursor.description is not None else []
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                fresh = self._connection is None
                self._drop()
                # A connection that has been idle may have died long ago. Every statement may run twice: those
                # that are fenced take no effect the second time.
                if fresh or not again:
                    raise DatabaseAway(str(error).strip().splitlines()[0]) from error
        raise AssertionError

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connected(url: str) -> Any:
    import psycopg2

    connection = psycopg2.connect(
        url,
        connect_timeout=_CONNECT_SECONDS,
        # A database whose host has vanished is noticed, and does not keep the process from ending.
        tcp_user_timeout=_SILENT_MILLISECONDS,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        application_name="modelserve-jobs",
        options=f"-c statement_timeout={_STATEMENT_MILLISECONDS}",
    )
    try:
        with connection, connection.cursor() as cursor:
            # Replicas start together, and CREATE … IF NOT EXISTS is not safe against itself.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
            cursor.execute(_SCHEMA)
        connection.autocommit = True
    except BaseException:
        connection.close()
        raise
    return connection


def _one(rows: list[tuple[Any, ...]]) -> Job | None:
    return Job(*rows[0]) if rows else None
