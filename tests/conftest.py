"""Fixtures that every folder shares: a real Valkey, and a key prefix of one's own."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from arq.connections import ArqRedis

from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from cache.encoding import codec

# A test reads no setting of the machine it runs on.
for _name in [name for name in os.environ if name.startswith("LETTA_")]:
    del os.environ[_name]
os.environ["LETTA_SECRETS_DIR"] = "/nonexistent"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A worker inside a test configures logging; the next test starts with none of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """One server for each test process; tests keep apart by `prefix`."""
    yield embedded.acquire("embedded://")
    embedded.release("embedded://")


@pytest.fixture
def private_valkey_url(tmp_path: Any) -> Iterator[str]:
    """A server of the test's own, with an append-only file: for stock arq's fixed keys and faults."""
    url = f"embedded://{tmp_path}/valkey"
    yield embedded.acquire(url)
    embedded.release(url)


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}:"


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    async with open_pool(valkey_url, PoolOptions(), name="test") as client:
        yield client


@pytest.fixture
async def arq(private_valkey_url: str) -> AsyncIterator[ArqRedis]:
    """Stock arq's client, with the serializers of ours."""
    async with open_pool(
        private_valkey_url,
        PoolOptions(),
        name="arq",
        client_class=ArqRedis,
        job_serializer=codec.encode,
        job_deserializer=codec.decode,
    ) as client:
        yield client
