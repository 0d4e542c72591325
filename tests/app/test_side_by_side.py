"""Workers and clients of an earlier release and of this one share a server: `make soak`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_upgrade import SAVED, receiver_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings
from worker import JobQueue, Priority, open_queue

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif("SOAK_SEED" not in os.environ, reason="part of make soak"),
]

ROOT = Path(__file__).resolve().parents[2]
PLAIN, HELD = 60, 6
# The ledger is one file that every process appends to. A held job ends when the test opens its round.
_JOBS = """
import asyncio
import os
from pathlib import Path

HOME = Path(os.environ["LEDGER_HOME"])


def note(step, name):
    with (HOME / "ledger").open("ab", buffering=0) as ledger:
        ledger.write(f"{step} {name} {os.environ['RELEASE']} {os.getpid()}\\n".encode())


async def plain(ctx, name):
    note("started", name)
    note("ended", name)


async def held(ctx, name):
    note("started", name)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["GATE_PORT"]))
    writer.write(name.split("-")[1].encode() + b"\\n")
    await reader.read()
    writer.close()
    note("ended", name)
"""
_CLIENT = """
import asyncio
import sys

from worker import Priority, open_queue


async def main(kind, count, url):
    async with open_queue() as queue:
        for n in range(int(count)):
            function = "plain" if kind == "plain" else "held"
            await queue.enqueue(function, f"old-{kind}-{n}", priority=list(Priority)[n % 4])
        for n in range(int(count) if kind == "plain" else 0):
            await queue.send_webhook(f"{url}/old-{n}", {"n": n}, event_type="side.by.side")


asyncio.run(main(*sys.argv[1:]))
"""


class Gate:
    """Keeps the connection of each held job until its round is opened."""

    def __init__(self) -> None:
        self.rounds: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        await self.rounds[name].wait()
        writer.close()


class Fleet:
    """Starts processes of either release, all on one server and one ledger."""

    def __init__(self, home: Path, url: str, gate_port: int) -> None:
        self.home = home
        self.gate_port = gate_port
        self.trees = {"old": home / "old", "new": ROOT}
        self.settings: dict[str, Any] = {
            "redis_url": url,
            "worker_functions": "side_jobs:plain,side_jobs:held",
            "webhook_allow_cidrs": "127.0.0.0/8",
            "worker_lease_s": 3,
            "worker_max_jobs": HELD,
        }
        (home / "side_jobs.py").write_text(_JOBS)
        (home / "ledger").touch()
        self.trees["old"].mkdir()
        archive = subprocess.run(
            ["git", "archive", SAVED["commit"], "cache", "letta_redis", "worker", "settings.py"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            pytest.skip("this clone lacks the earlier release's commit")
        subprocess.run(["tar", "-x"], cwd=self.trees["old"], input=archive.stdout, check=True)

    @asynccontextmanager
    async def process(
        self, release: str, *arguments: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        given = {f"LETTA_{name.upper()}": str(value) for name, value in self.settings.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self.home,
            env={
                **os.environ,
                **given,
                "PYTHONPATH": f"{self.trees[release]}:{self.home}",
                "LEDGER_HOME": str(self.home),
                "GATE_PORT": str(self.gate_port),
                "RELEASE": release,
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 120)

    def worker(self, release: str) -> Any:
        return self.process(release, "-m", "worker", "run", "--count", "1")

    def steps(self, step: str) -> list[tuple[str, str]]:
        """The names and releases of what was noted."""
        return [(name, release) for found, name, release, _ in self._rows() if found == step]

    def pids(self, names: set[str]) -> set[int]:
        """The processes that started these jobs."""
        return {int(pid) for _, name, _, pid in self._rows() if name in names}

    def _rows(self) -> list[list[str]]:
        return [line.split() for line in (self.home / "ledger").read_text().splitlines()]

    async def enqueue(self, queue: JobQueue, kind: str, count: int, url: str = "") -> set[str]:
        """Enqueue by a client of each release; webhooks beside plain jobs. Return the jobs' names."""
        async with self.process("old", "-c", _CLIENT, kind, str(count), url) as client:
            assert await client.wait() == 0
        for n in range(count):
            function = "plain" if kind == "plain" else "held"
            await queue.enqueue(function, f"new-{kind}-{n}", priority=list(Priority)[n % 4])
        for n in range(count if kind == "plain" else 0):
            await queue.send_webhook(f"{url}/new-{n}", {"n": n}, event_type="side.by.side")
        return {f"{release}-{kind}-{n}" for release in self.trees for n in range(count)}

    async def ended(self, names: set[str]) -> None:
        async def all_ended() -> bool:
            return names <= {name for name, _ in self.steps("ended")}

        await eventually(all_ended, deadline_s=120)


async def test_old_and_new_workers_share_a_server(tmp_path: Path, private_valkey_url: str) -> None:
    """Clients of both enqueue, a worker of each is killed: nothing is lost, nothing ends twice."""
    received: Counter[str] = Counter()
    gate = Gate()
    held = await asyncio.start_server(gate.hold, "127.0.0.1", 0)
    receiver = await asyncio.start_server(receiver_of(received), "127.0.0.1", 0)
    fleet = Fleet(tmp_path, private_valkey_url, port_of(held))
    url = f"http://127.0.0.1:{port_of(receiver)}"
    async with held, receiver, open_queue(quick_settings(private_valkey_url)) as queue:
        async with fleet.worker("old"), fleet.worker("new"):
            names = await fleet.enqueue(queue, "plain", PLAIN, url)
            await fleet.ended(names)
            await eventually(lambda: _all(received, 2 * PLAIN), deadline_s=120)
        for dying, survivor in (("old", "new"), ("new", "old")):
            names |= await killed(fleet, gate, queue, dying, survivor)
        stats = await queue.stats()

    assert Counter(name for name, _ in fleet.steps("ended")) == Counter(names)
    assert set(received.values()) == {1}
    assert not [row for row in stats.values() if row["queued"] or row["running"] or row["dead"]]


async def killed(fleet: Fleet, gate: Gate, queue: JobQueue, dying: str, survivor: str) -> set[str]:
    """Kill the worker of one release while both are full. The other ends the jobs of both."""
    async with fleet.worker(survivor), fleet.worker(dying) as victim:
        names = await fleet.enqueue(queue, f"{dying}dies", HELD)

        def started() -> dict[str, str]:
            return {name: who for name, who in fleet.steps("started") if name in names}

        async def both_are_full() -> bool:
            return Counter(started().values()) == {dying: HELD, survivor: HELD}

        await eventually(both_are_full, deadline_s=120)
        lost = {name for name, who in started().items() if who == dying}
        victim.kill()
        await victim.wait()
        # A process whose supervisor is dead would drain.
        for pid in fleet.pids(lost):
            os.kill(pid, signal.SIGKILL)
        gate.rounds[f"{dying}dies"].set()
        await fleet.ended(names)
    runs = Counter(name for name, _ in fleet.steps("started") if name in names)
    assert {name for name, count in runs.items() if count == 2} == lost
    assert {name: who for name, who in fleet.steps("ended") if name in lost} == dict.fromkeys(
        lost, survivor
    )
    return names


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _all(received: Counter[str], count: int) -> bool:
    return len(received) == count
