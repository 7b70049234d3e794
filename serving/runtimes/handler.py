"""Runs a team's own `handler.py`: `load(folder, device)` once, `predict(model, rows)` for each batch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from serving.errors import StartupError
from serving.runtimes.devices import choose_device
from serving.runtimes.modules import import_handler
from serving.spec import ModelFile


class HandlerRuntime:
    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        module = import_handler(folder, spec.handler)
        for name in ("load", "predict"):
            if not callable(getattr(module, name, None)):
                raise StartupError(
                    f"{folder / spec.handler}: no function {name}(); see the handler's contract"
                )
        for name in ("load", "predict"):
            if inspect.iscoroutinefunction(getattr(module, name)):
                raise StartupError(
                    f"{folder / spec.handler}: {name}() is async; write `def {name}`: predict() runs in a "
                    "thread of its own"
                )
        if inspect.isgeneratorfunction(module.predict) or inspect.isasyncgenfunction(module.predict):
            raise StartupError(f"{folder / spec.handler}: predict() yields; return a list with a dict a row")
        # A handler need not use torch; asking for a device must not import it then.
        device = (
            "cpu" if spec.device == "cpu" else choose_device(spec.device, import_torch=spec.device == "cuda")
        )
        self._model = module.load(folder, device)
        self._predict = module.predict

    def predict(self, rows: list[dict[str, Any]]) -> Any:
        return self._predict(self._model, rows)
