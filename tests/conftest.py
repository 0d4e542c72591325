"""Fixtures for every folder: a real Valkey, and a key prefix per test."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from arq.connections import ArqRedis
from hypothesis import HealthCheck, settings

from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from cache.encoding import codec
from tests.support import users
from tests.support.clusters import shared_cluster
from tests.support.sentinels import shared_sentinel

# The real Letta server needs an environment of its own: `make letta-test`.
collect_ignore = ["letta"]

# A busy machine takes long to connect, and to answer.
PATIENT = PoolOptions(connect_timeout_s=20, socket_timeout_s=20)

# Hypothesis fails an example that takes 200 ms, and inputs that come slowly.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Tests read no setting of the machine.
for _name in [name for name in os.environ if name.startswith("LETTA_")]:
    del os.environ[_name]
os.environ["LETTA_SECRETS_DIR"] = "/nonexistent"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Restore logging after each test, because a worker inside a test configures it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on-cluster",
        action="store_true",
        help="run on a cluster of three nodes what takes its client from the fixtures",
    )
    parser.addoption(
        "--on-sentinel",
        action="store_true",
        help="the same, behind a Sentinel",
    )


@pytest.fixture(scope="session")
def valkey_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """One server per test process; `prefix` separates the tests."""
    if request.config.getoption("--on-cluster"):
        with shared_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
            yield nodes.url
        return
    if request.config.getoption("--on-sentinel"):
        with shared_sentinel(tmp_path_factory.mktemp("sentinel")) as url:
            yield url
        return
    yield embedded.acquire("embedded://")
    embedded.release("embedded://")


@pytest.fixture
def private_valkey_url(tmp_path: Any) -> Iterator[str]:
    """A server for one test, with an append-only file: for faults, and for arq's fixed keys."""
    url = f"embedded://{tmp_path}/valkey"
    yield embedded.acquire(url)
    embedded.release(url)


@pytest.fixture
async def owner(private_valkey_url: str) -> AsyncIterator[Any]:
    """A client of the private server with all rights; `users.NAME` has those that it may lose."""
    async with open_pool(private_valkey_url, PATIENT, name="owner") as client:
        await users.set_rights(client, "on", ">pw", *users.RIGHTS)
        yield client


@pytest.fixture
async def weak(owner: Any, private_valkey_url: str) -> AsyncIterator[Any]:
    """A client of the user that `owner` gives rights to."""
    async with open_pool(users.as_weak(private_valkey_url), PATIENT, name="weak") as client:
        yield client


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    name = f"t{uuid.uuid4().hex[:12]}"
    return f"{{{name}}}:" if request.config.getoption("--on-cluster") else f"{name}:"


@pytest.fixture
async def client(valkey_url: str, prefix: str) -> AsyncIterator[Any]:
    async with open_pool(valkey_url, PATIENT, name="test", tag=prefix[:-1]) as client:
        yield client


@pytest.fixture
async def arq(private_valkey_url: str) -> AsyncIterator[ArqRedis]:
    """Stock arq's client with our serializers."""
    async with open_pool(
        private_valkey_url,
        PATIENT,
        name="arq",
        client_class=ArqRedis,
        job_serializer=codec.encode,
        job_deserializer=codec.decode,
    ) as client:
        yield client
