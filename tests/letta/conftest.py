"""
Fixtures of the real Letta server: PostgreSQL, Valkey, and the plug-in inside this process.

`make letta-test` runs this folder in an environment of its own, without the fixtures
of the other folders. Letta makes its database engine when it is imported, so its
settings are in the environment before.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from cache.connection import embedded
from letta_redis import install, uninstall
from letta_redis.plugin.install import Installation
from settings import Settings
from tests.letta.agents import Agents, make_agents
from tests.letta.postgres import Postgres, postgres

for _name in [name for name in os.environ if name.startswith("LETTA_")]:
    del os.environ[_name]
os.environ["LETTA_SECRETS_DIR"] = "/nonexistent"


@pytest.fixture(scope="session")
def database_server() -> Iterator[Postgres]:
    # Not below pytest's own directory, which only its user may enter.
    with (
        TemporaryDirectory(prefix="letta-redis-", dir="/tmp") as home,
        postgres(Path(home)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def letta(database_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Letta, imported on a fresh database. Returns the database's name."""
    database = database_server.create()
    os.environ["LETTA_PG_URI"] = database_server.uri(database)
    os.environ["LETTA_DIR"] = str(tmp_path_factory.mktemp("letta"))
    os.environ["LETTA_ENCRYPTION_KEY"] = "a key of the tests"
    import letta.server.server  # noqa: F401

    return database


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    yield embedded.acquire("embedded://")
    embedded.release("embedded://")


@pytest.fixture
async def plugin(letta: str, valkey_url: str) -> AsyncIterator[Installation]:
    """The plug-in, open in this test's loop."""
    installation = install(Settings(redis_url=valkey_url))
    await installation.runtime.start()
    yield installation
    await installation.runtime.stop()
    uninstall()


@pytest.fixture
async def agents(letta: str) -> Agents:
    return await make_agents()


@pytest.fixture
async def cache(plugin: Installation) -> Any:
    found = plugin.runtime.cache()
    assert found is not None
    return found
