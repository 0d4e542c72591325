"""What a heartbeat says of its process: memory, CPU, lag of the event loop, version."""

from __future__ import annotations

import asyncio
import json
import os
import time
from importlib.metadata import version
from typing import Any

from worker.engine.heartbeat import Heartbeat
from worker.engine.options import EngineOptions
from worker.engine.vitals import Vitals
from worker.keys import EngineKeys, QueueKeys


class Server:
    """Takes heartbeats, one after the other."""

    connection_pool = None

    def __init__(self) -> None:
        self.beats: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def set(self, _key: str, text: str, *, px: int) -> None:
        self.beats.put_nowait({**json.loads(text), "ttl_ms": px})

    async def evalsha(self, *_command: Any) -> int:
        return 0


async def nothing(_wait_s: float) -> None: ...


async def test_a_heartbeat_tells_how_late_the_event_loop_was() -> None:
    server = Server()
    heartbeat = Heartbeat(
        server,
        EngineKeys(QueueKeys()),
        EngineOptions(heartbeat_s=0.01),
        worker_id="w",
        report=dict,
        hint=lambda: None,
    )
    beating = asyncio.create_task(heartbeat.run(nothing, every_s=60))
    async with asyncio.timeout(30):
        assert (await server.beats.get())["lag_s"] == 0
        blocked_until = time.monotonic() + 0.2
        while time.monotonic() < blocked_until:
            pass
        late = await server.beats.get()
    beating.cancel()
    assert late["lag_s"] > 0.1


def test_a_reading_tells_memory_cpu_and_version() -> None:
    vitals = Vitals()
    busy_since = os.times().user
    while os.times().user < busy_since + 0.05:
        pass
    first = vitals.read(-0.001)
    assert first["memory_bytes"] > 1_000_000
    assert first["cpu"] > 0
    assert (first["lag_s"], first["version"]) == (0, version("letta-redis"))
