"""Estimators and boosted trees: the names of their features, the categories that their encoders know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.inference.examples import different_rows
from serving.looking.found import ROWS, Asked, Found, column
from serving.runtimes.estimators import read_estimator
from serving.runtimes.trees import read_lightgbm, read_xgboost
from serving.spec import Column


def look_sklearn(path: Path, asked: Asked) -> Found:
    estimator = read_estimator(path, trust_pickle=asked.trust_pickle)
    if not hasattr(estimator, "predict"):
        raise StartupError(
            f"{path}: a {type(estimator).__name__} has no predict(); save the whole fitted pipeline, or "
            "write a "
            "handler.py"
        )
    runtime: dict[str, Any] = {"kind": "sklearn", "file": path.name}
    if asked.trust_pickle:
        runtime["trust_pickle"] = True
    found = Found(f"scikit-learn, {_described(estimator)}", runtime, [], [])
    features = getattr(estimator, "feature_names_in_", None)
    if features is None:
        count = getattr(estimator, "n_features_in_", None)
        if count is None:
            raise StartupError(
                f"{path}: a {_described(estimator)} does not tell what it was trained on; fit it on a "
                "data frame "
                "(a text goes through a ColumnTransformer), or write a handler.py"
            )
        found.inputs = [column("features", "float64", [int(count)])]
        found.guessed.append(f"features: trained without names of columns; one input with {count} values")
    else:
        found.inputs, found.rows = _columns([str(name) for name in features], estimator, found)
    found.outputs = _estimated(estimator, _table(found), found)
    return found


def look_xgboost(path: Path) -> Found:
    booster = read_xgboost(path, threads=1)
    found = Found("XGBoost", {"kind": "xgboost", "file": path.name}, [], [])
    _plain(found, booster.feature_names, booster.num_features())
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    found.what = f"XGBoost, {objective}"
    matrix = _matrix(found)
    answer = np.asarray(booster.inplace_predict(matrix, validate_features=False))
    _boosted(found, objective, answer)
    return found


def look_lightgbm(path: Path) -> Found:
    booster = read_lightgbm(path)
    names = [str(name) for name in booster.feature_name()]
    plain = names == [f"Column_{place}" for place in range(len(names))]
    found = Found("LightGBM", {"kind": "lightgbm", "file": path.name}, [], [])
    _plain(found, None if plain else names, booster.num_feature())
    text = booster.model_to_string(num_iteration=1)
    objective = next(
        (line.split("=", 1)[1].split()[0] for line in text.splitlines() if line.startswith("objective=")), ""
    )
    found.what = f"LightGBM, {objective or 'an objective of its own'}"
    _boosted(found, objective, np.asarray(booster.predict(_matrix(found))))
    return found


def _described(estimator: Any) -> str:
    steps = getattr(estimator, "steps", None)
    last = f" of {type(steps[-1][1]).__name__}" if steps else ""
    return f"{type(estimator).__name__}{last}"


def _plain(found: Found, names: list[str] | None, count: int) -> None:
    if names is None:
        found.inputs = [column("features", "float64", [int(count)])]
        found.guessed.append(f"features: trained without names of columns; one input with {count} values")
    else:
        found.inputs = [column(str(name), "float64") for name in names]


def _boosted(found: Found, objective: str, answer: Array) -> None:
    chances = objective in ("binary:logistic", "reg:logistic", "binary", "cross_entropy")
    classes = objective in ("multi:softprob", "multiclass", "multiclassova")
    bounds = {"minimum": 0, "maximum": 1} if chances or classes else {}
    name = "probability" if chances else "probabilities" if classes else "prediction"
    found.outputs = [column(name, "float64", answer.shape[1:], **bounds)]
    if not bounds:
        found.guessed.append("prediction: without bounds; write minimum and maximum where you know them")


def _columns(
    names: list[str], estimator: Any, found: Found
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Columns for named features, and rows out of what encoders know; made-up ones for the rest."""
    categories, texts = _encoded(estimator, names)
    columns, free = [], []
    for name in names:
        known = categories.get(name)
        if known is not None:
            columns.append(column(name, known.dtype))
        elif name in texts:
            columns.append(column(name, "object"))
        else:
            columns.append(column(name, "float64"))
            free.append(name)
    if free:
        shown = ", ".join(free[:8]) + (" …" if len(free) > 8 else "")
        found.guessed.append(f"{shown}: numbers (the file has names and no types)")
    rows = different_rows(tuple(Column.model_validate(one) for one in columns), ROWS)
    for number, row in enumerate(rows):
        for name, known in categories.items():
            row[name] = (
                known[number % len(known)].item() if known.dtype != object else known[number % len(known)]
            )
    return columns, rows


def _encoded(estimator: Any, names: list[str]) -> tuple[dict[str, Array], set[str]]:
    """The categories that encoders have learned by column, and the columns that are read as text."""
    categories: dict[str, Array] = {}
    texts: set[str] = set()
    for step, columns in _first_steps(estimator, names):
        if hasattr(step, "vocabulary_"):
            texts.update(columns)
        for name, known in zip(columns, getattr(step, "categories_", ()), strict=False):
            known = np.asarray([one for one in known if one is not None and one == one])
            if len(known):
                categories[name] = known
    return categories, texts


def _first_steps(step: Any, columns: list[str]) -> list[tuple[Any, list[str]]]:
    """What sees the columns first, through pipelines and column transformers."""
    if getattr(step, "steps", None):
        return _first_steps(step.steps[0][1], columns)
    found: list[tuple[Any, list[str]]] = []
    if hasattr(step, "transformers_"):
        for _, inner, chosen in step.transformers_:
            if not isinstance(inner, str):
                found += _first_steps(inner, _chosen(chosen, columns))
        return found
    return [(step, columns)]


def _chosen(chosen: Any, columns: list[str]) -> list[str]:
    if isinstance(chosen, str):
        return [chosen]
    if isinstance(chosen, slice):
        return columns[chosen]
    places = np.asarray(chosen)
    if places.dtype.kind in "ib":
        return [str(name) for name in np.asarray(columns)[places]]
    return [str(name) for name in places]


def _table(found: Found) -> Any:
    if found.inputs[0].get("shape"):
        return _matrix(found)
    import pandas

    return pandas.DataFrame(found.rows)


def _matrix(found: Found) -> Array:
    rows = found.rows or different_rows(tuple(Column.model_validate(one) for one in found.inputs), ROWS)
    if found.inputs[0].get("shape"):
        return np.array([row[found.inputs[0]["name"]] for row in rows], dtype=np.float64)
    return np.array([[float(row[one["name"]]) for one in found.inputs] for row in rows])


def _estimated(estimator: Any, table: Any, found: Found) -> list[dict[str, Any]]:
    answer = np.asarray(estimator.predict(table))
    classes = getattr(estimator, "classes_", None)
    if classes is None or isinstance(classes, list):
        name = "prediction" if answer.dtype.kind == "f" else "label"
        if name == "prediction":
            found.guessed.append("prediction: without bounds; write minimum and maximum where you know them")
        return [column(name, answer.dtype, answer.shape[1:])]
    outputs = []
    if hasattr(estimator, "predict_proba"):
        if len(classes) == 2:
            outputs.append(
                column(
                    "probability", "float64", minimum=0, maximum=1, description=f"Of the class {classes[1]}."
                )
            )
        else:
            described = ", ".join(map(str, classes[:20]))
            outputs.append(
                column(
                    "probabilities", "float64", [len(classes)], minimum=0, maximum=1,
                    description=f"Of the classes {described}, in this order.",
                )
            )  # fmt: skip
    return [*outputs, column("label", answer.dtype)]
