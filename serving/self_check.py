"""What a model has to prove before it is ready: each client gets the answer to its own rows.

A few different rows go through the model alone, again, together, and together the other way round, from
JSON and from binary tensors, and their answers are encoded as clients will get them. An axis of rows that
is not one, a state that clients would share, types that do not fit and answers that cannot be written all
show here, before anybody is answered wrongly with status 200.

It is bounded in time: a slow model is checked less, and the log says so. It is the same at every start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from serving.errors import InvalidOutput, Problem, StartupError, WrongForm
from serving.inference.examples import different_rows, recorded_instances
from serving.inference.model import LoadedModel
from serving.inference.rows import Payload, Result, joined_payload, separated
from serving.spec import Column
from serving.v2.protocol import Protocol, Wanted
from serving.v2.request import infer_request

logger = logging.getLogger("serving.self_check")

_SECONDS = 10.0
_ROWS = 3
_RECORDED_SAMPLES = 20
_COARSE = 0.05
"""For float16 and bfloat16, whose numbers have two to three digits."""
_NOTHING = 1e-6

Row = dict[str, Any]
"""The outputs of one row by name."""


def self_check(loaded: LoadedModel, version: str) -> None:
    """StartupError, in one line that says which output, what was expected and what to write in model.yaml."""
    try:
        _Check(loaded, version).run()
    except _OutOfTime:
        logger.warning("the model is slow: its self-check was cut short after %g s", _SECONDS)


class _OutOfTime(Exception):
    pass


class _Check:
    def __init__(self, loaded: LoadedModel, version: str) -> None:
        self._loaded = loaded
        self._spec = loaded.spec
        self._codec = loaded.codec
        self._protocol = Protocol(loaded.spec, version)
        self._columns = {column.name: column for column in loaded.spec.signature.outputs}
        self._until = time.monotonic() + _SECONDS
        self._last = 0.0
        coarse = loaded.spec.serving.runtime.dtype != "float32"
        self._tolerance = max(loaded.spec.serving.tolerance, _COARSE if coarse else 0.0)
        self._scales: dict[str, float] = {}

    def run(self) -> None:
        payloads, alone = self._answered_alone()
        if not payloads:
            logger.warning("no self-check: no made-up row is answered; add samples.jsonl")
            return
        self._scales = {name: _largest([row[name] for row in alone]) for name in self._columns}
        limits = self._spec.serving
        most = min(limits.batching.max_rows, limits.limits.max_rows)
        payloads, alone = payloads[:most], alone[:most]
        if len(payloads) > 1:
            together = self._rows([joined_payload(payloads)])
            self._compare(alone, together, "together")
            backwards = self._rows(payloads[::-1])[::-1]
            self._compare(alone, backwards, "together the other way round")
        elif most > 1:
            logger.warning("only one row could be checked; add samples.jsonl with rows that differ")
        self._compare(alone[:1], self._rows(payloads[:1]), "a second time")
        self._as_tensors(payloads, alone)

    # ---- the rows

    def _answered_alone(self) -> tuple[list[Payload], list[Row]]:
        """Different rows that the model answers. What a recorded row gets must be right; a made-up one may be
        beyond what the model knows."""
        recorded = recorded_instances(self._loaded.bundle.folder, _RECORDED_SAMPLES)
        made_up = different_rows(self._spec.signature.inputs, _ROWS)
        payloads: list[Payload] = []
        answers: list[Row] = []
        seen: set[bytes] = set()
        for instance, known in [*((row, True) for row in recorded), *((row, False) for row in made_up)]:
            if len(payloads) == _ROWS:
                break
            key = orjson.dumps(instance, option=orjson.OPT_SORT_KEYS)
            if key in seen:
                continue
            seen.add(key)
            try:
                payload = self._codec.decode(b'{"instances":[%s]}' % orjson.dumps(instance))
                [answer] = self._rows([payload])
            except _OutOfTime:
                raise
            except WrongForm as problem:
                raise self._refusal(problem.detail) from problem
            except Exception as error:
                if known:
                    detail = (
                        error.detail if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
                    )
                    raise self._refusal(f"a row of samples.jsonl is not answered ({detail})") from error
                continue
            payloads.append(payload)
            answers.append(answer)
        return payloads, answers

    def _rows(self, payloads: Sequence[Payload]) -> list[Row]:
        """The model's answers to each row, which are also written in every form that clients get."""
        now = time.monotonic()
        if now + self._last > self._until:
            raise _OutOfTime
        results = self._loaded.engine.infer(payloads)
        self._last = max(self._last, time.monotonic() - now)
        rows: list[Row] = []
        for result in results:
            self._encoded(result)
            rows += [self._codec.prediction(one, 0) for one in separated(result)]
        return rows

    def _encoded(self, result: Result) -> None:
        names = list(self._columns)
        try:
            content = orjson.loads(self._codec.encode(result))["predictions"]
            self._codec.fragments(result)
            arrays = self._codec.arrays(result)
            self._protocol.answer(arrays, Wanted(None, [(name, False) for name in names]))
            if not any(_holds_null(array) for array in arrays.values()):
                self._protocol.answer(arrays, Wanted(None, [(name, True) for name in names]))
        except InvalidOutput:
            raise
        except Exception as error:
            raise WrongForm(f"the answer cannot be written ({type(error).__name__}: {error})") from error
        if len(content) != result.count:
            raise WrongForm(f"{result.count} rows are written as {len(content)} predictions")

    def _as_tensors(self, payloads: list[Payload], alone: list[Row]) -> None:
        """The same rows as a client of the Open Inference Protocol sends them, in JSON and in binary."""
        features = [self._codec.features(payload, 0) for payload in payloads]
        if any(value is None for row in features for value in row.values()):
            return  # binary tensors cannot say null everywhere
        for binary in (False, True):
            columns, _ = self._protocol.parse(*infer_request(self._spec, features, binary=binary))
            rows = self._rows([self._codec.payload(columns)])
            self._compare(alone, rows, f"as {'binary' if binary else 'JSON'} tensors")

    # ---- the answers

    def _compare(self, alone: list[Row], others: list[Row], how: str) -> None:
        if not self._spec.serving.deterministic:
            return
        for number, (expected, found) in enumerate(zip(alone, others, strict=True)):
            for name, column in self._columns.items():
                if not self._equal(column, expected[name], found[name]):
                    raise self._refusal(
                        f"output {name}: row {number} alone gives {_brief(expected[name])}, "
                        f"{how} {_brief(found[name])}. {_ADVICE[how == 'a second time']}"
                    )

    def _equal(self, column: Column, expected: Any, found: Any) -> bool:
        if column.type != "number":
            return bool(np.array_equal(np.asarray(expected), np.asarray(found)))
        one, other = (np.asarray(value, dtype=np.float64) for value in (expected, found))
        if one.shape != other.shape:
            return False
        allowed = self._tolerance * self._scales[column.name] + _NOTHING
        return bool(np.allclose(one, other, rtol=0.0, atol=allowed, equal_nan=True))

    def _refusal(self, detail: str) -> StartupError:
        return StartupError(f"{self._loaded.bundle.folder}: the self-check failed: {detail}")


_ADVICE = {
    False: (
        "What is in a batch with a row must not change its answer: make the model treat rows apart, or write "
        "`serving: {batching: {max_rows: 1}}` in model.yaml; `serving: {tolerance: …}` if it is only coarse, "
        "`serving: {deterministic: false}` if it is random"
    ),
    True: (
        "The model keeps a state from call to call, which all clients would share (sequences are not "
        "supported: take the state as an input and give it as an output), or it is random: then write "
        "`serving: {deterministic: false}` in model.yaml"
    ),
}


def _largest(values: list[Any]) -> float:
    """The largest magnitude among the numbers; 0 for anything else."""
    largest = 0.0
    for value in values:
        if value is None:
            continue
        array = np.asarray(value)
        if array.dtype.kind in "biuf" and array.size:
            finite = np.abs(array[np.isfinite(array)].astype(np.float64))
            largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def _holds_null(array: Any) -> bool:
    return array.dtype == object and any(value is None for value in array.reshape(-1))


def _brief(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
    return text if len(text) <= 80 else text[:77] + "…"
