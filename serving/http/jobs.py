"""The HTTP side of jobs."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import parse_qs

import orjson
from msgspec import UNSET

from serving.errors import BadRequest, Invalid, NotFound, Problem, Unavailable
from serving.exchange import JSON, Answer, Call, Handler
from serving.jobs.chunks import Chunks
from serving.jobs.inputs import (
    JobRequest,
    format_of_media,
    format_of_uri,
    instance_rows,
    read_request,
    rows_of,
    uri_pattern,
    within,
)
from serving.jobs.runner import JobRunner, checked_total
from serving.jobs.table import DatabaseAway, Job, JobTable
from serving.service import Service

_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_RESULTS = "/results"
_GROWTH = 4
"""The rows of a body may take so many times the largest body."""


class BatchPredict:
    """Every route under /batch-predict."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler); paths in Starlette's form."""
        return [
            ("POST", "/batch-predict", _asking(self.create)),
            ("GET", "/batch-predict/{id}", _asking(self.status)),
            ("GET", "/batch-predict/{id}/results", _asking(self.results)),
            ("DELETE", "/batch-predict/{id}", _asking(self.cancel)),
        ]

    async def create(self, call: Call) -> Answer:
        """202 with the job; the same key and body again give the same job."""
        service = self._service
        spec = service.model.spec
        table, chunks, runner = self._parts()
        if not service.personal.jobs:
            raise Invalid(
                "no jobs for this model: it has personal columns, and the rows of a job are stored as they "
                "are; its model.yaml may say serving.jobs.personal: keep"
            )
        headers = call.headers
        form = format_of_media(headers.get(b"content-type", b""))
        key = _key(headers.get(b"idempotency-key"))
        body = await service.body(call, spec.serving.jobs.max_body_bytes)
        request = await asyncio.to_thread(lambda: hashlib.sha256(form.encode() + b"\0" + body).hexdigest())
        if key is not None and (known := await table.by_key(key, call.client)) is not None:
            return _created(_same(known, request), chunks)
        if await table.waiting() >= spec.serving.jobs.max_queued:
            raise Unavailable("too many jobs wait", reason="full", retry_after=60)
        job = uuid.uuid4().hex
        size, most = spec.serving.jobs.chunk_rows, spec.serving.jobs.max_rows
        most_bytes = min(spec.serving.jobs.max_decoded_bytes, _GROWTH * spec.serving.jobs.max_body_bytes)
        asked = await asyncio.to_thread(read_request, body) if form == "json" else JobRequest()
        if asked.input_uri is not UNSET:
            if asked.instances is not UNSET:
                raise Invalid("give instances or input_uri, not both", pointer="#/input_uri")
            uri = self._allowed(asked.input_uri)
            added = await table.add(
                job,
                call.client,
                key,
                request,
                size,
                source_uri=uri,
                source_format=format_of_uri(uri, asked.format),
            )
        else:

            def rows() -> Iterator[bytes]:
                if form == "json":
                    return instance_rows(asked)
                return within(rows_of(io.BytesIO(body), form, spec), most_bytes)

            try:
                total = await asyncio.to_thread(lambda: chunks.split(job, 0, rows(), size, most))
                added = await table.add(job, call.client, key, request, size, rows=checked_total(total, most))
            except Problem:
                await asyncio.to_thread(chunks.remove, job)
                raise
            except OSError:
                raise Unavailable(
                    "the rows cannot be stored now; send them again", reason="store", retry_after=5
                ) from None
            if added.id != job:  # the same key came twice at the same time
                await asyncio.to_thread(chunks.remove, job)
        runner.wake()
        return _created(_same(added, request), chunks)

    async def status(self, call: Call) -> Answer:
        _, chunks, _ = self._parts()
        return _answer(200, await self._found(call), chunks)

    async def results(self, call: Call) -> Answer:
        """One page, which is one chunk; pages are there as soon as they are finished."""
        table, chunks, _ = self._parts()
        job = await self._found(call)
        page = _page(call)
        fence = (await table.chunk_fences(job.id)).get(page)
        if fence is None:
            raise NotFound(f"page {page} is not there; the job is {job.state}, with {job.chunks} pages")
        try:
            lines = await asyncio.to_thread(chunks.results, job.id, fence, page)
        except OSError:
            raise Unavailable("the results cannot be read now", reason="store", retry_after=5) from None
        head = {"id": job.id, "page": page, "pages": job.chunks}
        following = b'"results?page=%d"' % (page + 1) if page + 1 < job.chunks else b"null"
        content = orjson.dumps(head)[:-1] + b',"next":%s,"results":[%s]}' % (following, b",".join(lines))
        return Answer(200, content)

    async def cancel(self, call: Call) -> Answer:
        """Rows that have not started never run. A job that has ended stays as it is."""
        table, chunks, runner = self._parts()
        job = await self._found(call)
        await table.cancel(job.id, call.client)
        runner.dropped(job.id)
        return _answer(200, await self._found(call), chunks)

    def _parts(self) -> tuple[JobTable, Chunks, JobRunner]:
        _ = self._service.model
        jobs = self._service.jobs
        if jobs is None:
            raise Unavailable(
                "no jobs here: SERVING_DATABASE_URL and SERVING_JOBS_URI are not set", reason="no_database"
            )
        return jobs

    async def _found(self, call: Call) -> Job:
        """The job in the path, when it is this client's; NotFound."""
        table, _, _ = self._parts()
        path: str = call.scope["path"]
        name = path.removeprefix("/batch-predict/").removesuffix(_RESULTS)
        job = await table.find(name, call.client) if _ID.fullmatch(name) else None
        if job is None:
            raise NotFound("no such job")
        return job

    def _allowed(self, uri: str) -> str:
        if not re.fullmatch(uri_pattern(self._service.settings.job_inputs), uri):
            raise Invalid(
                "the input must be below the folder inputs of the jobs' store, or below one of "
                "SERVING_JOBS_INPUT_URIS, under a plain name",
                pointer="#/input_uri",
            )
        return uri


def _asking(handler: Handler) -> Handler:
    """The handler while PostgreSQL is there; 503 while it is not."""

    async def asked(call: Call) -> Answer:
        try:
            return await handler(call)
        except DatabaseAway:
            raise Unavailable(
                "the database of jobs does not answer", reason="database", retry_after=5
            ) from None

    return asked


def _same(job: Job, request: str) -> Job:
    if job.request != request:
        raise Invalid("this Idempotency-Key stands for another request")
    return job


def _created(job: Job, chunks: Chunks) -> Answer:
    # Relative, because gateways put a prefix before the path.
    return _answer(202, job, chunks, ((b"location", b"batch-predict/" + job.id.encode()),))


def _answer(status: int, job: Job, chunks: Chunks, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    content = {
        "id": job.id,
        "version": job.version,
        "state": job.state,
        "rows": job.rows,
        "rows_done": job.rows_done,
        "rows_failed": job.rows_failed,
        "progress": round(job.rows_done / job.rows, 4) if job.rows else 0.0,
        "pages": job.chunks,
        "error": job.error,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "results_uri": chunks.results_uri(job.id) if job.state == "done" else None,
    }
    return Answer(status, orjson.dumps(content), JSON, headers)


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")


def _key(given: bytes | None) -> str | None:
    if given is None:
        return None
    key = given.decode("latin-1")
    if not _KEY.fullmatch(key):
        raise BadRequest("Idempotency-Key must have 1 to 128 printable characters, without blanks")
    return key


def _page(call: Call) -> int:
    query: bytes = call.scope.get("query_string", b"")
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("page", ["0"])
    if len(values) != 1 or not re.fullmatch(r"[0-9]{1,9}", values[0]):
        raise BadRequest("page must be a whole number, from 0")
    return int(values[0])
