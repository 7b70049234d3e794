"""Runs the flights model: raw rows in, probability of a late arrival out.

Travels in the bundle beside `model.pt` and is imported from there, so it uses nothing but PyTorch.
Training encodes its rows with the same functions; there is no second copy of the preprocessing.

The file holds no table of its own. Which codes, defaults and scales apply is stored with the weights by
the training of that version, and this code trusts it: a value that the stored tables cannot express
raises KeyError, and so fails its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

CATEGORIES = ("carrier", "origin", "dest", "weekday")
NUMBERS = (
    "distance",
    "hour",
    "departures",
    "plane_age",
    "seats",
    "temperature",
    "dew_point",
    "humidity",
    "wind_speed",
    "precipitation",
    "pressure",
    "visibility",
)
OUTPUT = "late_probability"
UNKNOWN = "<unknown>"
"""Key of the code that stands for every category which training never saw."""
ANY_CARRIER = "<any>"
"""Key of a default that applies to carriers without a default of their own."""
FARTHEST = 1.5
"""Scaled numbers are cut to this many standard deviations. What lies farther out than training has seen is
not extrapolated: a network from the winter would otherwise call every flight of July punctual."""

Row = Mapping[str, Any]


class LateArrival(torch.nn.Module):
    """Embeddings of the categories beside the scaled numbers, then a small perceptron."""

    def __init__(self, sizes: Sequence[int], width: int = 8, hidden: int = 64) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(torch.nn.Embedding(size, width) for size in sizes)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(width * len(sizes) + len(NUMBERS), hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(hidden, hidden // 2),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden // 2, 1),
        )

    def forward(self, codes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """codes (rows, categories) int64, numbers (rows, numbers) float32 -> logits (rows,)."""
        embedded = [table(codes[:, place]) for place, table in enumerate(self.embeddings)]
        logits: torch.Tensor = self.layers(torch.cat([*embedded, numbers], dim=1))
        return logits.squeeze(1)


class Preprocessing(NamedTuple):
    """What training stored: how raw values become tensors."""

    vocabularies: dict[str, dict[str, int]]
    """Category -> value -> code."""
    defaults: dict[str, dict[str, float]]
    """Number -> carrier -> the value that stands in for a missing one."""
    scaling: dict[str, tuple[float, float]]
    """Number -> mean and standard deviation."""

    def encode(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (rows, categories) int64 and scaled numbers (rows, numbers) float32.

        KeyError for a value that the stored tables cannot express.
        """
        codes = [_codes(self.vocabularies[name], rows, name) for name in CATEGORIES]
        numbers = [_filled(self.defaults.get(name, {}), rows, name) for name in NUMBERS]
        scales = torch.tensor([self.scaling[name] for name in NUMBERS])
        scaled = (torch.tensor(numbers).T - scales[:, 0]) / scales[:, 1]
        return torch.tensor(codes).T, scaled.clamp(-FARTHEST, FARTHEST)


def _codes(vocabulary: Mapping[str, int], rows: Sequence[Row], name: str) -> list[int]:
    values = [str(row[name]) for row in rows]
    return [vocabulary[value if value in vocabulary else UNKNOWN] for value in values]


def _filled(defaults: Mapping[str, float], rows: Sequence[Row], name: str) -> list[float]:
    return [_default(defaults, row) if row[name] is None else float(row[name]) for row in rows]


def _default(defaults: Mapping[str, float], row: Row) -> float:
    carrier = row["carrier"]
    return defaults[carrier if carrier in defaults else ANY_CARRIER]


class Model(NamedTuple):
    preprocessing: Preprocessing
    network: LateArrival
    device: str


def load(folder: Path, device: str) -> Model:
    stored = torch.load(folder / "model.pt", map_location=device, weights_only=True)
    preprocessing = Preprocessing(stored["vocabularies"], stored["defaults"], stored["scaling"])
    network = LateArrival(stored["sizes"])
    network.load_state_dict(stored["weights"])
    return Model(preprocessing, network.eval().to(device), device)


def predict(model: Model, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    codes, numbers = model.preprocessing.encode(rows)
    with torch.inference_mode():
        logits = model.network(codes.to(model.device), numbers.to(model.device))
    return [{OUTPUT: probability} for probability in logits.sigmoid().tolist()]
