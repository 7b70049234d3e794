"""Estimators of scikit-learn: read from skops, or from a pickle where the model's owner says so.

What an output is follows from its name: `probabilities` (one a class) and `probability` (of the second of two
classes) come from `predict_proba`, `score` from `decision_function`, every other one from `predict`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import PackageNeeded, StartupError
from serving.runtimes.columns import Table, in_order, on_cpu
from serving.spec import Column, ModelFile

TREES = frozenset(
    {"sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"}
)
"""Arrays of forests and boosted trees. skops leaves them out of what it trusts, but they run nothing."""
PICKLES = (".pkl", ".pickle", ".joblib")


class SklearnRuntime:
    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        assert spec.file is not None
        on_cpu(spec)
        self._estimator = read_estimator(folder / spec.file, trust_pickle=spec.trust_pickle)
        names = getattr(self._estimator, "feature_names_in_", None)
        self._table = Table(model, None if names is None else [str(name) for name in names])
        self._calls = [_call(self._estimator, column) for column in model.signature.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        table = self._table(inputs)
        answers: dict[str, Any] = {}
        found = []
        for name, take in self._calls:
            if name not in answers:
                answers[name] = np.asarray(getattr(self._estimator, name)(table))
            found.append(take(answers[name]))
        return found

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """An estimator has its own number of jobs."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None


def _call(estimator: Any, column: Column) -> tuple[str, Callable[[Array], Array]]:
    name, take = {
        "probabilities": ("predict_proba", in_order),
        "probability": ("predict_proba", _second),
        "score": ("decision_function", in_order),
    }.get(column.name, ("predict", in_order))
    if not hasattr(estimator, name):
        raise StartupError(f"output {column.name}: a {type(estimator).__name__} has no {name}(); rename it")
    classes = getattr(estimator, "classes_", None)
    if column.name == "probability" and (classes is None or len(classes) != 2):
        raise StartupError(
            f"output probability: the estimator has {0 if classes is None else len(classes)} classes, not "
            "two; take probabilities with a shape"
        )
    return name, take


def _second(answer: Array) -> Array:
    return answer[:, 1]


def read_estimator(path: Path, *, trust_pickle: bool) -> Any:
    """The estimator of a file. StartupError in one line when it is not to be read, or not with this
    version."""
    if not path.is_file():
        raise StartupError(f"{path}: not there; name the model's file in serving.runtime.file")
    if path.suffix not in PICKLES:
        from skops.io import get_untrusted_types, load

        unknown = get_untrusted_types(file=path)
        strange = sorted(set(unknown) - TREES)
        if strange and not trust_pickle:
            raise StartupError(
                f"{path}: holds {', '.join(strange)[:200]}, which skops does not know; "
                "set trust_pickle: true if the file is your own"
            )
        return load(path, trusted=unknown)
    if not trust_pickle:
        raise StartupError(
            f"{path}: a pickle can run anything; write it with skops, or set trust_pickle: true if it is "
            "your own"
        )
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings():
        # Another version reads it and may answer otherwise, with no more than this warning.
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            return joblib.load(path)
        except InconsistentVersionWarning as error:
            needed = f"scikit-learn=={error.original_sklearn_version}"
            raise PackageNeeded(
                f"{path}: written with scikit-learn {error.original_sklearn_version}, read with "
                f"{error.current_sklearn_version}; put {needed} into requirements.txt",
                needed,
            ) from error
