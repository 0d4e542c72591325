"""Tests that killed workers and a restarted server lose no delivery."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import forks
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import open_queue
from worker.client import JobQueue
from worker.webhooks.attempts import AttemptStore

pytestmark = pytest.mark.faults

DELIVERIES = 100
KILLS = 25


class Receiver:
    """
    Counts each webhook-id. A POST on a connection made after `watch()` sets `arrived`,
    so that a test can act at that moment.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.arrived = asyncio.Event()
        self._watch = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def watch(self) -> None:
        self._watch += 1
        self.arrived.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch = self._watch
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                await reader.readexactly(int(headers["content-length"]))
                self.seen[headers["webhook-id"]] += 1
                if watch == self._watch:
                    self.arrived.set()
                # Keeps the worker between its POST and its record for a while.
                await asyncio.sleep(random.uniform(0, 0.02))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            yield self
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(*self.tasks)


def environment(url: str) -> dict[str, str]:
    return {
        "LETTA_REDIS_URL": url,
        "LETTA_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
        "LETTA_WEBHOOK_RETRY_BASE_S": "0.02",
        "LETTA_WEBHOOK_TIMEOUT_S": "1",
        # A dead worker's slots expire later than these tests kill the next worker.
        "LETTA_WEBHOOK_ENDPOINT_CONCURRENCY": "1000",
        # A job that is interrupted often must still continue.
        "LETTA_WEBHOOK_MAX_ATTEMPTS": "50",
        "LETTA_WORKER_LEASE_S": "2",
        "LETTA_WORKER_MAX_JOBS": "4",
        "LETTA_WORKER_LOG_LEVEL": "WARNING",
    }


async def all_delivered(queue: JobQueue, ids: list[str], deadline_s: float) -> list[Any]:
    async def look() -> list[Any] | None:
        found = [await queue.delivery(id_) for id_ in ids]
        return found if all(d.state == "delivered" for d in found) else None

    return await eventually(look, deadline_s=deadline_s)


@pytest.mark.serial
async def test_workers_killed_between_post_and_record_lose_nothing(
    private_valkey_url: str, tmp_path: Path
) -> None:
    receiver = Receiver()
    settings = quick_settings(private_valkey_url)
    async with receiver.listening(), open_queue(settings) as queue:
        ids = [
            await queue.send_webhook(receiver.url, {"n": n}, event_type="x", webhook_id=f"m{n}")
            for n in range(DELIVERIES)
        ]
        with forks(tmp_path / "log", **environment(settings.redis_url)) as workers:
            for _ in range(KILLS):
                receiver.watch()
                pid = workers.start()
                # Its first POST has arrived and is not answered, so nothing is recorded yet.
                async with asyncio.timeout(30):
                    await receiver.arrived.wait()
                workers.kill(pid)
            workers.start()
            found = await all_delivered(queue, ids, 90)
        interrupted = 0
        for delivery in found:
            errors = [attempt.error for attempt in delivery.attempts]
            assert errors[-1] == ""
            assert set(errors[:-1]) <= {"interrupted"}
            assert delivery.attempt_count == len(delivery.attempts)
            # Each POST is counted before it is made, so one that was interrupted before it was
            # sent is counted although the receiver did not see it.
            assert 1 <= receiver.seen[delivery.id] <= delivery.attempt_count
            interrupted += len(errors) - 1
        assert interrupted >= KILLS
        assert set(receiver.seen) == set(ids)


@pytest.mark.serial
async def test_a_server_restart_with_a_backlog_loses_no_delivery(tmp_path: Path) -> None:
    receiver, port = Receiver(), free_port()
    url = f"redis://127.0.0.1:{port}/0"
    aof = ("--appendonly", "yes", "--appendfsync", "always")
    async with receiver.listening():
        with contextlib.ExitStack() as first:
            first.enter_context(valkey(tmp_path / "data", *aof, port=port))
            with forks(tmp_path / "log", **environment(url)) as workers:
                workers.start()
                async with open_queue(quick_settings(url)) as queue:
                    ids = [
                        await queue.send_webhook(
                            receiver.url, {"n": n}, event_type="x", webhook_id=f"m{n}"
                        )
                        for n in range(DELIVERIES)
                    ]
                async with asyncio.timeout(30):
                    await receiver.arrived.wait()
                first.close()
                with valkey(tmp_path / "data", *aof, port=port):
                    async with open_queue(quick_settings(url)) as queue:
                        found = await all_delivered(queue, ids, 60)
    assert set(receiver.seen) == set(ids)
    for delivery in found:
        assert 1 <= receiver.seen[delivery.id] <= delivery.attempt_count


async def marker(_ctx: dict[str, Any]) -> str:
    return "done"


async def test_a_job_does_not_end_before_its_deliverys_record_is_stored(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gate, record = asyncio.Event(), asyncio.Event(), AttemptStore.record

    async def late(self: AttemptStore, *args: Any, **more: Any) -> list[str]:
        asked.set()
        await gate.wait()
        return await record(self, *args, **more)

    monkeypatch.setattr(AttemptStore, "record", late)
    receiver = Receiver()
    settings = quick_settings(private_valkey_url, worker_functions=f"{__name__}:marker")
    async with receiver.listening(), open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(receiver.url, {}, event_type="x")
        async with asyncio.timeout(30):
            await asked.wait()
        # A later job has ended, so an end of the first job would be visible by now.
        await (await queue.enqueue("marker")).result(timeout_s=30)
        assert await queue.jobs.get(f"webhook:{id_}").status() == "in_progress"
        assert (await queue.delivery(id_)).state == "sending"
        gate.set()
        await all_delivered(queue, [id_], 30)
    assert receiver.seen == {id_: 1}
