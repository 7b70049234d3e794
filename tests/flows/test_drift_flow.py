"""Drift checks from end to end: a real Redis, a real registry, real files, and Evidently's real report."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import drift
from flows.adapters.registry import Registry
from flows.alerting.exposition import exposition
from flows.archive import ARCHIVE, archive_all
from flows.domain.drift.findings import DriftResult, FindingKind, Outcome
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.report import markdown, table
from flows.domain.errors import DependencyDown, ReleaseUnknown, SpecInvalid
from flows.steps import drift_check
from flows.steps.consequence import carry_out
from tests.flows.drift_world import HOUR, NOW, World, rows


def test_drift_is_found_reported_recorded_and_freezes(world: World) -> None:
    world.serve(consequence="freeze")
    world.send(rows(1200, 2, shift=3))

    result = drift.check_model(world.plane, "paint")

    assert result.outcome is Outcome.DRIFTED
    assert [column.column for column in result.columns if column.drifted] == ["width", "prediction.price"]
    assert len(result.windows) == 6
    frozen = world.plane.registry.standing("paint").frozen
    assert frozen is not None
    assert "columns drifted" in frozen
    at, outcome, stored = world.plane.registry.drift_checks("paint")[0]
    assert outcome == "drifted"
    assert stored["scores"]["width"] >= 1
    assert stored["alerts"] is True
    assert (datetime.now(UTC) - at) < timedelta(minutes=5)
    assert result.report is not None
    report = Path(result.report.removeprefix("file://"))
    assert "Evidently&#x27;s defaults: 2 of 3 columns, dataset drift" in report.read_text()
    assert (report.parent / "evidently.html").stat().st_size > 1_000_000
    assert "| `width` | **yes** |" in markdown(result)
    assert table(result)


def recoloured(count: int, seed: int) -> pd.DataFrame:
    """Blue and red change places; the price depends on the width alone."""
    frame = rows(count, seed)
    return frame.assign(colour=frame["colour"].replace({"red": "blue", "blue": "red"}))


def test_a_run_over_many_models_draws_where_there_is_something_to_look_at(world: World) -> None:
    for model in ("paint", "glass", "steel"):
        world.serve(model)
    world.send(recoloured(1200, 2))
    world.send(rows(1200, 3), model="glass")
    world.send(rows(1200, 2, shift=3), model="steel")

    noticed, stable, drifted = drift.check_models(world.plane, ["paint", "glass", "steel"])

    assert [one.outcome for one in (noticed, stable, drifted)] == ["noticed", "stable", "drifted"]
    assert (noticed.shows, noticed.alerts) == (True, False)
    assert noticed.consequence is None
    assert stable.report is None
    assert drifted.consequence == "alert: the drift metrics fire it"
    for one in (noticed, drifted):
        assert one.report is not None
        assert "<svg" in Path(one.report.removeprefix("file://")).read_text()
        assert world.plane.registry.drift_checks(one.model)[0][2]["report"] == one.report


def test_unchanged_traffic_has_no_consequence(world: World) -> None:
    world.serve(consequence="freeze")
    world.send(rows(1200, 3))

    result = drift.check_model(world.plane, "paint", draw="never")

    assert result.outcome is Outcome.STABLE, result.sentence
    assert result.consequence is None
    assert world.plane.registry.standing("paint").frozen is None


def test_a_second_alert_does_not_freeze_again(world: World) -> None:
    world.serve(consequence="freeze")
    world.send(rows(1200, 2, shift=3))
    drift.check_model(world.plane, "paint", draw="never")

    again = drift.check_model(world.plane, "paint", draw="never")

    assert again.consequence == "promotions were frozen already"


def test_a_policy_that_records_never_alerts(world: World) -> None:
    world.serve(consequence="record")
    world.send(rows(1200, 2, shift=3))

    result = drift.check_model(world.plane, "paint", draw="never")

    assert result.outcome is Outcome.DRIFTED
    assert result.consequence == "recorded, as the policy wants"
    assert result.to_dict()["alerts"] is False
    assert 'modelserve_drift_alert{model="paint",outcome="drifted"} 0.0' in exposition(world.plane).decode()
    assert world.plane.registry.standing("paint").frozen is None


def test_rows_of_another_release_are_not_this_releases_drift(world: World) -> None:
    world.serve()
    world.serve(version=2)
    world.send(rows(600, 4, shift=3))

    result = drift.check_model(world.plane, "paint", draw="never")

    assert result.outcome is Outcome.NO_SAMPLES
    assert result.sentence == "no samples of paint-v2; rows of other releases: paint-v1 600"


def test_a_release_without_reference_says_how_to_get_one(world: World) -> None:
    world.serve(reference=False)
    result = drift.check_model(world.plane, "paint")
    assert result.outcome is Outcome.NO_REFERENCE
    assert "--training" in result.sentence


def test_a_changed_reference_is_not_believed(world: World) -> None:
    world.serve()
    world.send(rows(600, 5))
    release = world.plane.registry.release("paint", 1)
    reference = Path(release.bundle.removeprefix("file://")) / "reference.json"
    reference.write_text(reference.read_text().replace("paint", "glass"))

    result = drift.check_model(world.plane, "paint")

    assert result.outcome is Outcome.NO_REFERENCE
    assert "was changed after registration" in result.sentence


def test_a_silent_redis_is_said_and_the_archive_is_checked(world: World) -> None:
    world.serve()
    world.send(rows(1200, 6))
    archive_all(world.plane)
    assert ARCHIVE in world.plane.registry.beats()
    deaf = replace(
        world.plane, settings=world.plane.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    )

    result = drift.check_model(deaf, "paint", draw="never")

    assert result.outcome is Outcome.STABLE
    assert result.findings[0].kind is FindingKind.LOST_SAMPLES


def test_bad_rows_are_typed_findings_in_the_report_and_the_metrics(world: World) -> None:
    """A damaged part, outcomes of requests nobody has sampled, text for numbers, new and missing columns."""
    world.serve()
    world.send(rows(1200, 6))
    archive_all(world.plane)
    archived = Path(world.plane.settings.artifacts_uri.removeprefix("file://")) / "samples"
    next(archived.rglob("*.parquet")).write_bytes(b"PAR1 cut off")
    world.send(rows(1200, 7))
    sample = {"release": "paint-v1", "row": 0, "prediction": {"price": 1}}
    for place in range(600):
        features: dict[str, object] = {"width": "wide", "gloss": 1}
        at = NOW + (6 + place / 300) * HOUR
        odd = {
            **sample,
            "at": at,
            "request_id": f"odd{place}",
            "features": features,
            "prediction": {"price": 1},
        }
        world.client.xadd("samples:paint", {"data": json.dumps(odd)})
    outcome = {"request_id": "never-sampled", "row": 0, "outcome": 30, "at": NOW + 7 * HOUR}
    world.client.xadd("outcomes:paint", {"data": json.dumps(outcome)})

    result = drift.check_model(world.plane, "paint")

    assert result.outcome is Outcome.DAMAGED
    kinds = {finding.kind for finding in result.findings}
    assert kinds >= {
        FindingKind.CORRUPT_PART,
        FindingKind.CHANGED_TYPE,
        FindingKind.MISSING_COLUMN,
        FindingKind.NEW_COLUMN,
        FindingKind.UNKNOWN_OUTCOME,
    }
    page = exposition(world.plane).decode()
    for kind in kinds:
        assert f'modelserve_drift_findings{{kind="{kind}",model="paint"}}' in page
    assert 'modelserve_drift_alert{model="paint",outcome="damaged"} 1.0' in page
    assert "**unknown outcome**: 1 outcomes belong to no sampled prediction" in markdown(result)


def test_a_fault_becomes_a_recorded_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(drift_check, "open_samples", broken)

    (result,) = drift.check_models(world.plane, ["paint"])

    assert (result.outcome, result.sentence) == (Outcome.FAILED, "of all things")
    assert world.plane.registry.drift_checks("paint")[0][1] == "failed"
    assert drift.DRIFT not in world.plane.registry.beats()


def test_an_unknown_model_is_refused(world: World) -> None:
    with pytest.raises(ReleaseUnknown):
        drift.check_model(world.plane, "nobody")
    (result,) = drift.check_models(world.plane, ["nobody"])
    assert result.outcome is Outcome.FAILED


def test_a_parquet_folder_is_checked_without_consequences(world: World, tmp_path: Path) -> None:
    world.serve(consequence="freeze")
    folder = tmp_path / "rows"
    folder.mkdir()
    rows(2000, 7, shift=3).to_parquet(folder / "a.parquet")

    result = drift.check_model(world.plane, "paint", data=str(folder), draw="never")

    assert result.outcome in (Outcome.DRIFTED, Outcome.CANNOT_TELL)
    assert result.consequence is None
    assert world.plane.registry.standing("paint").frozen is None
    assert world.plane.registry.drift_checks("paint") == []
    (folder / "a.parquet").write_bytes(b"PAR1 broken")
    broken = drift.check_model(world.plane, "paint", data=str(folder))
    assert "cannot be read as Parquet" in broken.sentence


def test_only_models_whose_schedule_has_struck_are_due(world: World) -> None:
    world.serve()
    world.serve("glass")
    now = datetime.now(UTC)
    assert sorted(drift.due_models(world.plane, now)) == ["glass", "paint"]
    drift.check_models(world.plane, ["paint"])
    assert drift.due_models(world.plane, now) == ["glass"]
    assert sorted(drift.due_models(world.plane, now + timedelta(days=1))) == ["glass", "paint"]
    assert drift.DRIFT in world.plane.registry.beats()


def test_a_spec_that_cannot_be_read_any_more_holds_up_no_other_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve()
    world.serve("glass")
    world.send(rows(1200, 3))
    stored = type(world.plane.registry).spec

    def older(registry: Any, model: str, version: int) -> str:
        text: str = stored(registry, model, version)
        return text + "\nbatching: {}\n" if model == "glass" else text

    monkeypatch.setattr(type(world.plane.registry), "spec", older)

    due = drift.due_models(world.plane, datetime.now(UTC))
    results = {result.model: result for result in drift.check_models(world.plane, due)}

    assert results["paint"].outcome is Outcome.STABLE
    assert results["glass"].outcome is Outcome.FAILED
    assert "batching" in results["glass"].sentence
    assert drift.due_models(world.plane, datetime.now(UTC)) == [], (
        "a failed check waits for its schedule, too"
    )


def test_training_that_cannot_start_is_said(world: World) -> None:
    world.serve()
    policy = DriftPolicy(consequence="retrain", training="train/nobody")
    result = DriftResult("paint", "paint-v1", Outcome.DRIFTED, "width drifted")

    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        said = carry_out(world.plane, result, "retrain", policy)

    assert said.startswith("retrain failed: training 'train/nobody' did not start")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("1970-01-02", 86400.0),
        ("1970-01-01T01:00:00Z", 3600.0),
        ("2h", -7200.0),
    ],
)
def test_moments_are_dates_or_ages(text: str | None, expected: float | None) -> None:
    assert drift.moment(text, datetime.fromtimestamp(0, UTC)) == expected


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        ("yesterdayish", None, "'yesterdayish' is no time"),
        (None, "soon", "'soon' is no time"),
        ("2013-08-01", "2013-07-01", "is it the other way round"),
        ("1d", "7d", "is it the other way round"),
    ],
)
def test_a_stretch_of_time_that_is_none_is_refused(since: str | None, until: str | None, said: str) -> None:
    with pytest.raises(SpecInvalid, match=said):
        drift.stretch(since, until, datetime.now(UTC))


def test_a_stretch_of_time_is_checked_alone(world: World) -> None:
    """Six hours of traffic; the last two differ."""
    world.serve()
    frame = rows(1200, 3)
    frame.loc[800:, ["width", "price"]] += [3, 9]
    world.send(frame)
    times = [datetime.fromtimestamp(NOW + hours * HOUR, UTC).isoformat() for hours in (0, 4, 6)]

    before = drift.check_by_hand(world.plane, ["paint"], times[0], times[1])[0]
    after = drift.check_by_hand(world.plane, ["paint"], times[1], times[2])[0]

    assert (before.outcome, after.outcome) == ("stable", "drifted")
    assert (before.rows, after.rows) == (800, 400)
    starts = [window.start for window in after.windows]
    assert starts == [NOW + 4 * HOUR, NOW + 5 * HOUR]


def all_null(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(colour=None)


@pytest.mark.parametrize(
    ("reference", "live", "outcome", "kind"),
    [
        (True, None, "no_samples", None),
        (True, rows(30, 3), "cannot_tell", "too_few_rows"),
        (False, rows(1200, 3), "no_reference", None),
        ("glass", rows(1200, 3), "wrong_reference", None),
        (True, all_null(rows(1200, 3)), "damaged", "all_null"),
        (True, rows(1200, 3).assign(colour="pink"), "drifted", "unseen_category"),
        (True, rows(1200, 3), "stable", None),
    ],
)
def test_every_outcome_is_on_record_in_the_metrics_and_on_the_page(
    world: World, reference: bool | str, live: pd.DataFrame | None, outcome: str, kind: str | None
) -> None:
    world.serve(reference=reference)
    if live is not None:
        world.send(live.astype(object).where(live.notna(), None))

    result = drift.check_model(world.plane, "paint", draw="never")

    assert result.outcome == outcome, result.sentence
    assert world.plane.registry.drift_checks("paint")[0][1] == outcome
    metrics = exposition(world.plane).decode()
    assert f'modelserve_drift_outcome{{model="paint",outcome="{outcome}"}} 1.0' in metrics
    assert ("modelserve_drift_last_success_timestamp_seconds{" in metrics) == result.outcome.checked
    assert markdown(result).startswith(f"# paint: {outcome}\n\n{result.sentence}")
    if kind is not None:
        assert f'modelserve_drift_findings{{kind="{kind}",model="paint"}}' in metrics


def test_a_registry_that_is_away_is_said(world: World) -> None:
    """Nothing can be recorded then: the result says why, and 'nobody has checked' is what alerts."""
    away = replace(world.plane, registry=Registry("postgresql://nobody@127.0.0.1:1/away", patience=0.2))

    (result,) = drift.check_by_hand(away, ["paint"], None, None)

    assert result.outcome is Outcome.FAILED
    assert "PostgreSQL does not answer" in result.sentence
    with pytest.raises(DependencyDown):
        drift.check_by_hand(away, None, None, None)
