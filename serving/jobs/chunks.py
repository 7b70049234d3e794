"""A job's input and results as numbered files of JSON Lines in the artifact store. Blocking; for threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import orjson


class Chunks:
    """Files below one fsspec folder, `<job>/…`. Raises what fsspec raises, mostly OSError."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def split(self, job: str, fence: int, rows: Iterable[bytes], size: int, most: int) -> int | None:
        """Write rows as input chunks; how many rows, or None when there are more than `most`."""
        total = 0
        for number, part in enumerate(_parts(rows, size)):
            total += len(part)
            if total > most:
                return None
            self._write(_input(job, fence, number), part)
        return total

    def input(self, job: str, fence: int, number: int) -> list[bytes]:
        return self._read(_input(job, fence, number))

    def keep(self, job: str, fence: int, number: int, lines: list[bytes]) -> None:
        """Write a chunk of results. The fencing number is in its name: a replica that has lost the job and
        does not know it yet writes beside what counts."""
        self._write(_result(job, fence, number), lines)

    def results(self, job: str, fence: int, number: int) -> list[bytes]:
        return self._read(_result(job, fence, number))

    def finish(self, job: str, fences: list[int]) -> None:
        """Write results.json: the files that count, in order."""
        files = [f"{self._uri}/{_result(job, fence, number)}" for number, fence in enumerate(fences)]
        self._write(f"{job}/results.json", [orjson.dumps({"format": "jsonl", "files": files})])

    def results_uri(self, job: str) -> str:
        return f"{self._uri}/{job}/results.json"

    def remove(self, job: str) -> None:
        filesystem, root = self._open()
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{job}", recursive=True)

    def _write(self, name: str, lines: list[bytes]) -> None:
        filesystem, root = self._open()
        path, content = f"{root}/{name}", b"\n".join(lines) + b"\n"
        try:
            filesystem.pipe_file(path, content)
        except FileNotFoundError:
            if "file" not in filesystem.protocol:
                raise  # there are no folders in a bucket, and a bucket that is not there must not be made
            filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            filesystem.pipe_file(path, content)

    def _read(self, name: str) -> list[bytes]:
        filesystem, root = self._open()
        content: bytes = filesystem.cat_file(f"{root}/{name}")
        return content.splitlines()

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            self._opened = fsspec.core.url_to_fs(self._uri)
        return self._opened


def _input(job: str, fence: int, number: int) -> str:
    return f"{job}/input-{fence}/{number:06d}.jsonl"


def _result(job: str, fence: int, number: int) -> str:
    return f"{job}/results/{number:06d}-{fence}.jsonl"


def _parts(rows: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
