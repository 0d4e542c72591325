"""
Runs PostgreSQL with pgvector, from the binaries that pgserver installs, and migrates it for Letta.

The migrated database is kept as a template in .cache/letta, because migrating takes 20 s
and copying it a fraction of one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "letta"
TEMPLATE = "letta_template"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server. Its databases are Letta's, migrated."""

    port: int

    def uri(self, database: str) -> str:
        return f"postgresql://letta@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = TEMPLATE) -> str:
        """A fresh database; returns its name."""
        name = f"letta_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        import psycopg2

        connection = psycopg2.connect(self.uri(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


@contextmanager
def postgres(home: Path) -> Iterator[Postgres]:
    """Run a server in this directory until the block ends. Its template is migrated."""
    data = home / "data"
    _make(data)
    server = _start(data)
    try:
        yield server
    finally:
        _run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def keep_template() -> None:
    """Migrate the template that every `postgres` starts from. `make letta-env` runs it."""
    fresh = CACHE / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    _make(fresh)
    try:
        _migrate(_start(fresh))
    finally:
        _run("pg_ctl", "-D", fresh, "-w", "stop")
    fresh.rename(CACHE / "postgres")


def _start(data: Path) -> Postgres:
    port = free_port()
    options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off -c max_connections=200"
    _run("pg_ctl", "-D", data, "-w", "-t", "120", "-l", data / "log", "-o", options, "start")
    return Postgres(port)


def _make(data: Path) -> None:
    """Make the data directory: a copy of the migrated one, or an empty one."""
    data.parent.mkdir(parents=True, exist_ok=True)
    kept = CACHE / "postgres"
    if kept.is_dir():
        shutil.copytree(kept, data)
    else:
        data.mkdir()
    user = _user()
    if user is not None:
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        data.parent.chmod(0o755)
    data.chmod(0o700)
    if not kept.is_dir():
        _run("initdb", "-D", data, "-U", "letta", "--auth", "trust", "--no-sync", "-E", "UTF8")


def _migrate(server: Postgres) -> None:
    """Make the template by Letta's own migrations."""
    server.execute(f"CREATE DATABASE {TEMPLATE}")
    server.execute("CREATE EXTENSION vector", TEMPLATE)
    environment = {**os.environ, "LETTA_PG_URI": server.uri(TEMPLATE)}
    _done(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=CACHE / "source", env=environment
    )


def _user() -> Any:
    """PostgreSQL refuses to run as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _run(program: str, *arguments: object) -> None:
    import pgserver

    home = Path(pgserver.__file__).parent / "pginstall" / "bin"
    user = _user()
    identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    _done([str(home / program), *map(str, arguments)], cwd="/", **identity)


def _done(command: list[str], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[:4]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    keep_template()
