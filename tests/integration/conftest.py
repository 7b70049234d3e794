"""Real parts that several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.s3_server import run_s3


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server from the wheel, with one account, stopped by its pid."""
    yield from run_s3(tmp_path_factory.mktemp("s3"))
