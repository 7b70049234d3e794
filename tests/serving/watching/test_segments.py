"""Requests by the value of a column, as a server counts and shows them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from serving.errors import SpecProblem
from serving.inference.bundle import seal
from serving.spec import read_model_file
from tests.serving.model_bundles import PEOPLE_SIGNATURE, people, person
from tests.serving.server_runs import threaded

CATEGORIES = ["Ada", "poison", "nan"]


def by_name(folder: Path, segments: list[str], **column: object) -> Path:
    """The people's model, counting by columns; its `name` has categories."""
    inputs = [
        {**one, **({"categories": CATEGORIES, **column} if one["name"] == "name" else {})}
        for one in PEOPLE_SIGNATURE["inputs"]
    ]
    bundle = people(folder, signature={**PEOPLE_SIGNATURE, "inputs": inputs})
    content = yaml.safe_load((bundle / "model.yaml").read_text())
    content["promotion"] = {"segments": segments, "alpha": 0.01}
    (bundle / "model.yaml").write_text(yaml.safe_dump(content))
    seal(bundle)
    return bundle


def counted(client: httpx.Client, name: str) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = {}
    for line in lines:
        if line.startswith(f"modelserve_segment_{name}_total{{"):
            labels, _, value = line.rpartition(" ")
            found[labels.split('segment="')[1].split('"')[0]] = float(value)
    return found


@pytest.mark.parametrize("fast_path", [True, False])
def test_requests_and_failures_are_counted_by_value_and_all_values_are_shown_from_zero(
    tmp_path: Path, fast_path: bool
) -> None:
    bundle = by_name(tmp_path, ["name", "member"])
    with threaded(bundle, fast_path=fast_path) as server, server.client() as client:
        assert counted(client, "errors") == {
            "name=Ada": 0,
            "name=poison": 0,
            "name=nan": 0,
            "name=other": 0,
            "member=false": 0,
            "member=true": 0,
            "member=other": 0,
        }

        def post(*rows: dict[str, object]) -> int:
            return client.post("/predict", json={"instances": list(rows)}).status_code

        assert post(person("Ada")) == 200
        # One request, though both of its rows have the value.
        assert post(person("Ada"), person("Ada"), person("somebody", member=False)) == 200
        assert post(person("poison")) == 500
        # The client's own mistakes are nobody's failure, and say nothing of a value.
        assert post({**person("Ada"), "age": "thirty"}) == 422
        assert counted(client, "requests") == {
            "name=Ada": 2,
            "name=poison": 1,
            "name=nan": 0,
            "name=other": 1,
            "member=false": 1,
            "member=true": 3,
            "member=other": 0,
        }
        errors = counted(client, "errors")
        assert {name for name, count in errors.items() if count} == {"name=poison", "member=true"}


def test_the_open_inference_way_counts_as_well(tmp_path: Path) -> None:
    with threaded(by_name(tmp_path, ["name"])) as server, server.client() as client:
        inputs = [
            {"name": name, "shape": [1], "datatype": datatype, "data": [value]}
            for (name, value), datatype in zip(
                person("poison").items(), ["INT64", "FP64", "BYTES", "BOOL"], strict=True
            )
        ]
        answer = client.post("/v2/models/people/infer", json={"inputs": inputs})
        assert answer.status_code == 500, answer.text
        assert counted(client, "errors")["name=poison"] == 1


def test_who_names_a_version_has_chosen_whom_to_ask_and_is_not_counted(tmp_path: Path) -> None:
    with threaded(by_name(tmp_path, ["name"])) as server, server.client() as client:
        body = {"instances": [person("poison")]}
        answer = client.post("/predict", json=body, headers={"X-Model-Version": "1"})
        assert answer.status_code == 500, answer.text
        assert not any(counted(client, "errors").values())
        assert client.post("/predict", json=body).status_code == 500
        assert counted(client, "errors")["name=poison"] == 1


def test_a_model_without_segments_has_no_such_series(tmp_path: Path) -> None:
    with threaded(people(tmp_path)) as server, server.client() as client:
        client.post("/predict", json={"instances": [person()]})
        assert counted(client, "requests") == {}


@pytest.mark.parametrize(
    ("segments", "column"),
    [(["city"], {}), (["height"], {}), (["name"], {"personal": "drop"}), (["name"], {"categories": []})],
    ids=["no input", "many values", "personal", "unknown values"],
)
def test_a_column_whose_values_are_not_known_is_refused(
    tmp_path: Path, segments: list[str], column: dict[str, object]
) -> None:
    bundle = by_name(tmp_path, segments, **column)
    with pytest.raises(SpecProblem, match=r"promotion\.segments"):
        read_model_file(bundle / "model.yaml")
