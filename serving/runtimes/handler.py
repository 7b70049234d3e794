"""Runs a team's own `handler.py`: `load(folder, device)` once, `predict(model, rows)` for each batch."""

from __future__ import annotations

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
        # A handler need not use torch; asking for a device must not import it then.
        device = (
            "cpu" if spec.device == "cpu" else choose_device(spec.device, import_torch=spec.device == "cuda")
        )
        self._model = module.load(folder, device)
        self._predict = module.predict

    def predict(self, rows: list[dict[str, Any]]) -> Any:
        return self._predict(self._model, rows)
