"""A loaded model: bundle, runtime, codec, engine and what was learned while warming up.

`load_model` runs in a thread while the server already answers its probes; nothing here touches the loop.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import orjson

from serving.errors import Problem, StartupError, WrongForm
from serving.inference.bundle import Bundle, load_bundle
from serving.inference.codec import Codec, make_codec
from serving.inference.cost import BatchCost
from serving.inference.engine import RecordEngine, TensorEngine
from serving.inference.examples import instances_for
from serving.inference.rows import Payload, joined_payload
from serving.runtimes import RowRuntime, TensorRuntime, make_runtime
from serving.settings import Settings
from serving.spec import ModelFile

logger = logging.getLogger("serving.inference.model")

_WARM_UP_SECONDS = 10.0
_SHORT_SECONDS = 0.05
_SHORT_RUNS = 5
_INLINE_SECONDS = 0.002
_NEVER_INLINE_SECONDS = 0.05


@dataclass(frozen=True)
class LoadedModel:
    bundle: Bundle
    spec: ModelFile
    runtime: TensorRuntime | RowRuntime
    codec: Codec
    engine: TensorEngine | RecordEngine
    cost: BatchCost
    one: Payload | None = None
    """A row that the model is known to answer."""

    @property
    def tensors(self) -> TensorRuntime | None:
        """The runtime when it computes on tensors; None for a handler."""
        return None if isinstance(self.engine, RecordEngine) else self.runtime  # type: ignore[return-value]

    def row_seconds(self) -> float | None:
        """What a row of the largest batch takes, as far as is known; None before the model has run."""
        most = self.spec.serving.batching.max_rows
        return None if self.one is None else self.cost.seconds(most) / most


def load_model(settings: Settings) -> LoadedModel:
    """Fetch, verify, load and warm up. StartupError in one line when any of it is impossible."""
    started = time.monotonic()
    bundle = load_bundle(settings.bundle, settings.bundle_sha256)
    spec = bundle.model
    if settings.model is not None and settings.model != spec.name:
        raise StartupError(
            f"{settings.bundle}: holds the model {spec.name!r}, SERVING_MODEL is {settings.model!r}"
        )
    runtime = make_runtime(spec, bundle.folder)
    engine: TensorEngine | RecordEngine
    if spec.serving.runtime.kind == "handler":
        engine = RecordEngine(runtime, spec)  # type: ignore[arg-type]
    else:
        engine = TensorEngine(runtime, spec)  # type: ignore[arg-type]
    loaded = LoadedModel(bundle, spec, runtime, make_codec(spec), engine, BatchCost())
    read = time.monotonic()
    one = warm_up(loaded)
    if one is not None and loaded.tensors is not None:
        batch = joined_payload([one] * spec.serving.batching.max_rows)
        loaded.tensors.tune(lambda: _timed(loaded, batch))
        _learn_cost(loaded, one)
    loaded = replace(loaded, one=one)
    logger.info(
        "model loaded",
        extra={
            "load_seconds": round(read - started, 3),
            "warm_up_seconds": round(time.monotonic() - read, 3),
        },
    )
    return loaded


def warm_up(loaded: LoadedModel) -> Payload | None:
    """Run batches of 1, 2, 4, … rows and learn their cost; the row they were made of, if there is one.

    A recorded sample that the model cannot answer ends the start; a made-up row that a handler cannot answer
    does not.
    """
    instances, recorded = instances_for(loaded.spec, loaded.bundle.folder)
    try:
        one = loaded.codec.decode(orjson.dumps({"instances": instances})).part(0, 1)
        _timed(loaded, one)
    except Exception as error:
        detail = error.detail if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        if recorded or isinstance(loaded.engine, TensorEngine) or isinstance(error, WrongForm):
            raise StartupError(f"{loaded.bundle.folder}: the model fails its warm-up ({detail})") from error
        logger.warning("no warm-up: the model does not take a made-up row; add samples.jsonl (%s)", detail)
        return None
    _learn_cost(loaded, one)
    return one


def _learn_cost(loaded: LoadedModel, one: Payload) -> None:
    """The best of a few runs a size: a neighbour that takes the CPU can only make a run longer."""
    until = time.monotonic() + _WARM_UP_SECONDS
    most = loaded.spec.serving.batching.max_rows
    rows = 1
    while True:
        batch = joined_payload([one] * rows)
        seconds = _timed(loaded, batch)
        if seconds < _SHORT_SECONDS:
            seconds = min(_timed(loaded, batch) for _ in range(_SHORT_RUNS))
        loaded.cost.observe(rows, seconds)
        if rows == most or time.monotonic() + 3 * seconds > until:
            return
        rows = min(rows * 2, most)


def short(loaded: LoadedModel) -> bool:
    """Whether the largest batch is short enough to run in the calling thread, the event loop's.

    In CPU time, so that a neighbour that takes the CPU does not look like a slow model. Also warms this
    thread: libraries set up state for each thread that calls them.
    """
    most = loaded.spec.serving.batching.max_rows
    if loaded.one is None or loaded.cost.seconds(most) > _NEVER_INLINE_SECONDS:
        return False
    batch = joined_payload([loaded.one] * most)
    used = []
    for _ in range(_SHORT_RUNS):
        before = time.thread_time()
        loaded.engine.infer([batch])
        used.append(time.thread_time() - before)
    return min(used) < _INLINE_SECONDS


def _timed(loaded: LoadedModel, payload: Payload) -> float:
    started = time.perf_counter()
    loaded.engine.infer([payload])
    return time.perf_counter() - started
