"""Trains the three versions of the flights model that the demo promotes, rejects and watches.

    python -m serving.models.flights.train --output FOLDER [--version N ...] [--data-cache FOLDER]

Each version gets a bundle folder `FOLDER/flights-v<N>` (model.yaml, handler.py, model.pt, samples.jsonl) and,
beside it because a bundle must not carry rows, `FOLDER/flights-v<N>.training.parquet`: the frame from which
the drift reference is computed.

The versions differ in what they were trained on and in what was stored, never in code:

1. January and February: what a team has when it starts.
2. The six weeks before the live period: the routine retraining, better on live traffic.
3. The last two weeks only, with a "finer" preprocessing: a median for each carrier with enough known values
   instead of one default a column, rows that this cannot fill dropped, and no code for unknown categories,
   since the window has none. All its own rows pass. Live rows do not: Envoy Air rarely reports the tail
   numbers that age and seats are looked up by, so it has no median, and new destinations come up.

Everything runs in one thread from fixed seeds: the same data gives the same bytes, so a second run
registers the same release instead of a conflicting one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from serving.models.flights import data, handler, learning

MODEL = "flights"
LIVE_SINCE, LIVE_UNTIL = "2013-07-01", "2013-08-16"
"""The period that the demo replays; every training window ends before it."""

RECIPES = {
    recipe.version: recipe
    for recipe in (
        learning.Recipe(1, "2013-01-01", "2013-03-01"),
        learning.Recipe(2, "2013-05-15", "2013-07-01"),
        learning.Recipe(3, "2013-06-17", "2013-07-01", unknown_code=False, medians_by_carrier=True),
    )
}


@dataclass(frozen=True)
class Trained:
    """Where one version's files are, and how good it is."""

    version: int
    bundle: Path
    training: Path
    rows: int
    seconds: float
    """CPU seconds of fitting."""
    unseen_auc: float
    """Within its window, each day scored by a network that had not seen that day."""
    live_auc: float
    """On the live rows that it answers."""
    live_refused: float
    """Share of the live rows whose values its preprocessing cannot express."""


def bundle(version: int, output: Path, data_cache: Path) -> Trained:
    """Train `version` and write its bundle and training frame into `output`, replacing older ones."""
    recipe = RECIPES[version]
    prepared = data.prepared(data_cache)
    window = _arrived(data.between(prepared, recipe.since, recipe.until))
    started = time.process_time()
    with learning.reproducible(seed=version):
        preprocessing = learning.learn_preprocessing(window, recipe)
        window = window.filter(pa.array(learning.usable(preprocessing, learning.inputs(window))))
        rows, late = learning.inputs(window), window["outcome"].to_numpy()
        model = handler.Model(preprocessing, learning.fit(preprocessing, rows, late, recipe), "cpu")
        scores = learning.scores_of_unseen_days(preprocessing, window, recipe)
    seconds = time.process_time() - started
    folder = output / f"{MODEL}-v{version}"
    _write_bundle(folder, model, rows, late)
    frame = output / f"{MODEL}-v{version}.training.parquet"
    pq.write_table(_training_frame(window, scores), frame)
    live = data.between(prepared, LIVE_SINCE, LIVE_UNTIL)
    answered = learning.usable(preprocessing, learning.inputs(live))
    arrived = _arrived(live.filter(pa.array(answered)))
    live_auc = area_under_curve(
        arrived["outcome"].to_numpy(), learning.scores(model, learning.inputs(arrived))
    )
    unseen_auc = area_under_curve(late, scores)
    refused = 1 - sum(answered) / len(answered)
    return Trained(version, folder, frame, len(rows), seconds, unseen_auc, live_auc, refused)


def area_under_curve(outcomes: learning.Floats, scores: learning.Floats) -> float:
    """Chance that a late flight scores above a punctual one; equal scores count half."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    late = outcomes == 1
    positives, negatives = int(late.sum()), int((~late).sum())
    return float((ranks[late].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _arrived(table: pa.Table) -> pa.Table:
    """Cancelled and diverted flights have no outcome to learn from."""
    return table.filter(pc.is_valid(table["outcome"]))


def _write_bundle(folder: Path, model: handler.Model, rows: learning.Rows, late: learning.Floats) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    preprocessing = model.preprocessing
    stored = {
        "sizes": [len(preprocessing.vocabularies[name]) for name in handler.CATEGORIES],
        "weights": model.network.state_dict(),
        "vocabularies": preprocessing.vocabularies,
        "defaults": preprocessing.defaults,
        "scaling": preprocessing.scaling,
    }
    torch.save(stored, folder / "model.pt")
    for name in ("model.yaml", "handler.py"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    samples = _samples(handler.load(folder, "cpu"), rows, late)
    lines = [json.dumps(sample, separators=(",", ":")) + "\n" for sample in samples]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")


def _samples(model: handler.Model, rows: learning.Rows, late: learning.Floats) -> list[dict[str, Any]]:
    """Requests with this version's own answers, from rows that it was trained on: late, on time, incomplete,
    a batch, and one request that must be refused."""
    order = np.random.default_rng(0).permutation(len(rows))
    complete = [place for place in order if None not in rows[place].values()]
    incomplete = [place for place in order if rows[place]["plane_age"] is None]
    singles = [*[p for p in complete if late[p]][:3], *[p for p in complete if not late[p]][:3]]
    requests = [[rows[place]] for place in [*singles, *incomplete[:2]]]
    requests.append([rows[place] for place in order[:16]])
    samples: list[dict[str, Any]] = []
    for instances in requests:
        answers = [answer[handler.OUTPUT] for answer in handler.predict(model, instances)]
        samples.append({"instances": instances, "predictions": answers, "tolerance": 1e-4})
    samples.append({"instances": [{**rows[complete[0]], "distance": "far"}], "status": 422})
    return samples


def _training_frame(window: pa.Table, scores: learning.Floats) -> pa.Table:
    """Inputs, answer and outcome of each row: what the reference of drift checks is made of."""
    frame = window.select([*data.INPUTS, "outcome"])
    return frame.append_column(handler.OUTPUT, pa.array(scores))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.models.flights.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--version", type=int, action="append", choices=sorted(RECIPES), metavar="N",
                        help="1, 2 or 3; may be repeated; default: all three")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--data-cache", type=Path, help="folder for the prepared data; default: OUTPUT")
    chosen = parser.parse_args(arguments)
    try:
        for version in chosen.version or sorted(RECIPES):
            trained = bundle(version, chosen.output, chosen.data_cache or chosen.output)
            print(
                f"flights v{version}: {trained.rows} rows of {RECIPES[version].since} to "
                f"{RECIPES[version].until}, {trained.seconds:.1f} s of CPU; AUC {trained.unseen_auc:.3f} on "
                f"unseen days of it, {trained.live_auc:.3f} live; cannot read "
                f"{trained.live_refused:.1%} of the live rows; {trained.bundle}",
                flush=True,
            )
    except (data.DataMissing, OSError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
