"""Of the servers of a fleet, one at a time writes the outcome of a callback."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from letta_redis.plugin import rows
from letta_redis.plugin.outcomes import Outcomes
from tests.support.queues import queue_of
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration

ID = "run-1:completed"


class Writes:
    """What is written to Letta's tables. A write waits until `ends` is set."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ends = asyncio.Event()
        self.count = 0

    async def __call__(self, _owner: str, _delivery: Any, **_more: Any) -> bool:
        if self.begun.is_set() and not self.ends.is_set():
            raise RuntimeError("another server writes it")
        self.count += 1
        self.begun.set()
        await self.ends.wait()
        return True


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch, prefix: str) -> Writes:
    made, keys = Writes(), QueueKeys(prefix)
    monkeypatch.setattr(rows, "write_outcome", made)
    monkeypatch.setattr(QueueKeys, "of", lambda _client: keys)
    return made


@pytest.fixture
def servers(client: Any, prefix: str, writes: Writes) -> list[Outcomes]:
    queue = queue_of(client, prefix)
    return [Outcomes(queue, client, is_on=lambda: True, counts=Counter()) for _ in range(2)]


async def test_a_server_takes_no_outcome_that_another_writes(
    client: Any, prefix: str, servers: list[Outcomes], writes: Writes
) -> None:
    first, second = servers
    await client.zadd(QueueKeys(prefix).letta_callbacks, {ID: 0})
    writing = asyncio.ensure_future(first.look())
    await writes.begun.wait()
    assert await second.look() == 0
    writes.ends.set()
    assert await writing == 1
    assert await second.look() == 0
    assert writes.count == 1


async def test_the_outcome_of_a_dead_server_is_written_by_another(
    client: Any, prefix: str, servers: list[Outcomes], writes: Writes
) -> None:
    first, second = servers
    keys = QueueKeys(prefix)
    await client.zadd(keys.letta_callbacks, {ID: 0})
    dying = asyncio.ensure_future(first.look())
    await writes.begun.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    assert 0 < await client.pttl(keys.letta_callback_held(ID)) <= 30_000
    await client.delete(keys.letta_callback_held(ID))  # as the end of its TTL
    writes.ends.set()
    assert await second.look() == 1
    assert await client.zcard(keys.letta_callbacks) == 0
