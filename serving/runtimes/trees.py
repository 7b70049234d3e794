"""Boosted trees of XGBoost and LightGBM, from their own formats, which hold no code.

XGBoost reads `.json` and `.ubj`, LightGBM its text. Missing values are NaN, which both understand. Outputs
are in the order of the signature: one for each of the model's, or one with a shape for all of them.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.runtimes.columns import Table, on_cpu
from serving.runtimes.devices import cpu_quota
from serving.spec import ModelFile


class TreesRuntime:
    """What the two have in common; `_predict` gives (rows,) or (rows, outputs)."""

    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        assert spec.file is not None
        on_cpu(spec)
        path = folder / spec.file
        if not path.is_file():
            raise StartupError(f"{path}: not there; name the model's file in serving.runtime.file")
        self._outputs = len(model.signature.outputs)
        self._threads = spec.threads or cpu_quota()
        self._table = Table(model, self._load(path), frame=False)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        answer = np.asarray(self._predict(self._table(inputs)))
        if self._outputs == 1:
            return [answer]
        return [answer] if answer.ndim == 1 else list(answer.T)

    def _load(self, path: Path) -> list[str] | None:
        """Read the model; the names of its features, None when it was trained without."""
        raise NotImplementedError

    def _predict(self, matrix: Array) -> Any:
        raise NotImplementedError

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """The threads are given with the model."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None


def _offer_openmp() -> None:
    """LightGBM's wheel expects the system's libgomp, which images do not have: torch brings one."""
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or ()) if torch is not None else ():
        library = Path(folder) / "lib" / "libgomp.so.1"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def read_xgboost(path: Path, threads: int) -> Any:
    """A booster of XGBoost. StartupError for a file that is none."""
    import xgboost

    if path.suffix not in (".json", ".ubj"):
        raise StartupError(f"{path}: save it as .json or .ubj (Booster.save_model)")
    return xgboost.Booster({"nthread": threads}, model_file=str(path))


def read_lightgbm(path: Path) -> Any:
    _offer_openmp()
    import lightgbm

    return lightgbm.Booster(model_file=str(path))


class XgboostRuntime(TreesRuntime):
    def _load(self, path: Path) -> list[str] | None:
        self._booster = read_xgboost(path, self._threads)
        names = self._booster.feature_names
        return None if names is None else [str(name) for name in names]

    def _predict(self, matrix: Array) -> Any:
        # The names were compared with the signature's once, when the table was made.
        return self._booster.inplace_predict(matrix, validate_features=False)


class LightgbmRuntime(TreesRuntime):
    def _load(self, path: Path) -> list[str] | None:
        self._booster = read_lightgbm(path)
        names = [str(name) for name in self._booster.feature_name()]
        return None if names == [f"Column_{place}" for place in range(len(names))] else names

    def _predict(self, matrix: Array) -> Any:
        return self._booster.predict(matrix, num_threads=self._threads)
