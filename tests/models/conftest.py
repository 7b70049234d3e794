"""The three versions, trained once for all tests of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.models.flights import data
from serving.models.flights.train import RECIPES, Trained, bundle


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flights-data")


@pytest.fixture(scope="session")
def prepared(data_cache: Path) -> Path:
    return data.prepared(data_cache)


@pytest.fixture(scope="session")
def trained(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    output = tmp_path_factory.mktemp("bundles")
    return {version: bundle(version, output, data_cache) for version in RECIPES}
