"""An idle worker sends few commands, and still finds jobs that came without a token."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cache.connection.pool import PoolOptions, open_pool
from tests.support.engine import running
from tests.support.fault_proxy import fault_proxy
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker.engine import EngineOptions
from worker.engine.listen import ChangeListener, Listener
from worker.keys import EngineKeys, QueueKeys
from worker.queue.store import job_body

pytestmark = pytest.mark.integration

OFTEN = EngineOptions(poll_s=0.05, heartbeat_s=60)


async def double(ctx: dict[str, Any], n: int) -> int:
    return 2 * n


async def calls(client: Any, command: str) -> int:
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_an_idle_poll_of_an_empty_queue_is_one_command(private_valkey_url: str) -> None:
    async with (
        open_pool(private_valkey_url, PoolOptions(), name="test") as client,
        running(client, "t:", [double], options=OFTEN),
    ):
        looks, scripts = 0, -1

        async def looked_often_without_a_script() -> bool:
            nonlocal looks, scripts
            # Scripts come from the start of the heartbeat and the listener, and later every
            # 20 s from the waker, so a slow run has them in between.
            if (ran := await calls(client, "evalsha")) != scripts:
                looks, scripts = await calls(client, "exists"), ran
            return await calls(client, "exists") >= looks + 30

        await eventually(looked_often_without_a_script, deadline_s=100)


async def test_a_job_without_token_or_listener_is_found(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await client.set(f"{prefix}queue:listener", "another worker, which is gone")
    async with running(client, prefix, [double], options=OFTEN):
        # As left by a client whose token was popped by a worker that then died.
        await client.set(f"{prefix}job:a", job_body("double", [4], {}, now_ms=1))
        await client.zadd(f"{prefix}queue", {"a": 5})
        assert await queue.jobs.get("a").result(timeout_s=10) == 8


class Hearing:
    """Runs a listener and counts its hints; the first one covers earlier changes."""

    def __init__(self, client: Any, prefix: str, through: Any = None) -> None:
        self.client = client
        self.queue = f"{prefix}queue"
        self.hints = 0
        keys = EngineKeys(QueueKeys(prefix))
        self.listener = Listener(through or client, keys, self._hint, probe_s=0.1)
        self._scores = itertools.count(5)

    def _hint(self) -> None:
        self.hints += 1

    async def change(self, queue: str) -> None:
        """Change a queue until the listener notices."""
        before = self.hints

        async def heard() -> bool:
            await self.client.zadd(queue, {"a": next(self._scores)})
            return self.hints > before

        await eventually(heard)

    async def more_than(self, hints: int) -> bool:
        return self.hints > hints


@asynccontextmanager
async def at_work(hearing: Hearing) -> AsyncIterator[Hearing]:
    task = asyncio.create_task(hearing.listener.run())
    try:
        await eventually(lambda: hearing.more_than(0))
        yield hearing
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def hearing(client: Any, prefix: str) -> AsyncIterator[Hearing]:
    async with at_work(Hearing(client, prefix)) as hearing:
        yield hearing


async def test_only_changes_of_queues_are_hints(client: Any, hearing: Hearing) -> None:
    await hearing.change(f"{hearing.queue}:low")
    before = hearing.hints
    for n in range(50):
        await client.set(f"{hearing.queue}:health-check", n)
    # Messages arrive in order: by this hint, the others would have arrived.
    await hearing.change(hearing.queue)
    assert hearing.hints - before < 10


# Flag P: the subscribed connection. Flag t: the tracking connection.
@pytest.mark.parametrize("flag", ["P", "t"])
async def test_a_listener_whose_connection_ends_listens_again(
    client: Any, hearing: Hearing, flag: str
) -> None:
    await hearing.change(hearing.queue)
    before = hearing.hints
    ours = [c for c in await client.client_list() if flag in c["flags"]]
    assert ours
    for one in ours:
        await client.client_kill_filter(_id=one["id"])
    await eventually(lambda: hearing.more_than(before))
    await hearing.change(hearing.queue)


async def test_a_listener_in_a_quiet_time_stays(client: Any, hearing: Hearing) -> None:
    pings = await calls(client, "ping")

    async def asked() -> bool:
        return await calls(client, "ping") >= pings + 8

    await eventually(asked)
    # It did not reconnect.
    assert hearing.hints == 1
    await hearing.change(hearing.queue)


class Alternating:
    """A client whose pool connects to several servers, one after the other."""

    def __init__(self, *clients: Any) -> None:
        self.connection_pool = self
        self._pools = itertools.cycle([client.connection_pool for client in clients])

    def make_connection(self) -> Any:
        return next(self._pools).make_connection()


async def test_a_listener_whose_connection_falls_silent_reconnects(
    client: Any, prefix: str, valkey_url: str
) -> None:
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        open_pool(proxy.url, PoolOptions(), name="through") as through,
        at_work(Hearing(client, prefix, Alternating(through, client))) as hearing,
    ):
        # The tracking connection takes another path, which works.
        proxy.swallow()
        await eventually(lambda: hearing.more_than(1))
        await hearing.change(hearing.queue)


async def test_a_listener_that_gets_an_error_reconnects() -> None:
    transport = FakeTransport()
    changes = ChangeListener(transport, lambda _: None)
    changes.data_received(b"-NOPERM no permission\r\n")
    await asyncio.wait_for(changes.ended, 10)


class FakeTransport:
    """A transport that has only a protocol."""

    def get_protocol(self) -> asyncio.BaseProtocol:
        return asyncio.Protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Ignore it: the test supplies the bytes."""
