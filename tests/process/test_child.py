"""The child's side of supervision, without a second process."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from random import Random

import pytest

from worker.process import child
from worker.process.child import ChildOptions, report_bad_configuration, rss_bytes, serve
from worker.process.pipes import HEARTBEAT_FD
from worker.process.policy import ExitCode

pytestmark = pytest.mark.unit


class Counting:
    """Ends one job per loop step until drained."""

    def __init__(self) -> None:
        self.jobs_done = 0
        self._drained = False

    async def run(self) -> None:
        while not self._drained:
            self.jobs_done += 1
            await asyncio.sleep(0)

    def drain(self) -> None:
        self._drained = True

    quiet = force = drain


class TopRandom(Random):
    def random(self) -> float:
        return 1.0


async def test_a_worker_that_returns_by_itself_has_drained() -> None:
    worker = Counting()
    worker.drain()

    assert await serve(worker, ChildOptions()) == ExitCode.DRAINED


async def test_any_other_error_of_the_worker_is_raised() -> None:
    class Broken(Counting):
        async def run(self) -> None:
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        await serve(Broken(), ChildOptions())


async def test_processes_started_together_recycle_at_different_times() -> None:
    async def recycled_at(rng: Random) -> int:
        worker = Counting()
        options = ChildOptions(heartbeat_interval_s=0, max_jobs_done=200, recycle_jitter=0.5)
        assert await serve(worker, options, rng=rng) == ExitCode.RECYCLE
        return worker.jobs_done

    assert await recycled_at(TopRandom()) < 150 < await recycled_at(_BottomRandom())


class _BottomRandom(Random):
    def random(self) -> float:
        return 0.0


def test_resident_memory_is_read_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Path("/proc/self/status").read_text()
    kib = int(status.partition("VmRSS:")[2].split()[0])
    assert rss_bytes() == pytest.approx(kib * 1024, rel=0.1)

    def absent(*_args: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(child, "open", absent, raising=False)
    assert rss_bytes() >= kib * 1024 * 0.9


def test_a_bad_configuration_goes_through_the_pipe_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()
    monkeypatch.setenv(HEARTBEAT_FD, str(write_end))

    assert report_bad_configuration("LETTA_X: wrong\n  value") == ExitCode.BAD_CONFIGURATION

    assert os.read(read_end, 100) == b"bad_configuration LETTA_X: wrong value\n"
    assert HEARTBEAT_FD not in os.environ
    assert capsys.readouterr().err == ""
    os.close(read_end)
    os.close(write_end)


def test_a_descriptor_that_is_not_a_pipe_is_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setenv(HEARTBEAT_FD, str(ours.fileno()))

    report_bad_configuration("LETTA_X: wrong")

    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert capsys.readouterr().err == "LETTA_X: wrong\n"
    ours.close()
    theirs.close()
