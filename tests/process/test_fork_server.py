"""The process that forks the workers: it dies, hangs, or gets signals that are not for it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.servers import run
from tests.support.supervised import is_alive, supervised
from worker.process.aside import run_aside

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]


async def test_children_survive_their_fork_server_and_are_still_watched() -> None:
    async with supervised("serve", count=2) as running:
        first = await running.event("supervisor.fork_server_started")
        kept = await running.event("supervisor.child_ready", slot=0)
        lost = await running.event("supervisor.child_ready", slot=1)

        os.kill(first["pid"], signal.SIGKILL)

        await running.event("supervisor.fork_server_ended", exit_code=-signal.SIGKILL)
        assert is_alive(kept["pid"])
        os.kill(lost["pid"], signal.SIGKILL)
        await running.event("supervisor.child_ended", pid=lost["pid"])
        await running.event("supervisor.fork_server_started", count=2)
        await running.event("supervisor.child_ready", slot=1, count=2)
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 0
        assert running.all("supervisor.child_ended", pid=kept["pid"], exit_code=0)
        await running.gone()


async def test_signals_of_a_service_manager_do_not_end_the_fork_server() -> None:
    async with supervised("serve") as running:
        server = await running.event("supervisor.fork_server_started")
        child = await running.event("supervisor.child_ready")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGHUP):
            os.kill(server["pid"], number)

        os.kill(child["pid"], signal.SIGKILL)

        await running.event("supervisor.child_ended", signal="SIGKILL")
        await running.event("supervisor.child_ready", count=2)
        assert len(running.all("supervisor.fork_server_started")) == 1
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 0


async def test_a_program_that_ends_before_it_forks_is_reported_once() -> None:
    async with supervised("broken", count=4) as running:
        assert await running.exit_code() == 2

        assert await running.stderr() == "LETTA_TOY: no such toy\n"
        assert running.pids == set()


async def test_a_signal_during_the_imports_ends_the_supervisor_at_once(tmp_path: Path) -> None:
    flag = tmp_path / "importing"
    flag.touch()
    async with supervised("slow-import", "--while-file", str(flag), count=2) as running:
        await running.event("supervisor.fork_server_started")

        running.signal(signal.SIGTERM)

        assert await running.exit_code() == 0
        assert len(running.all("supervisor.fork_server_started")) == 1
        await running.gone()


async def test_imports_that_hang_count_as_a_crash(tmp_path: Path) -> None:
    flag = tmp_path / "importing"
    flag.touch()
    flags = ("--while-file", str(flag))
    restart = {"max_crashes": 1}
    async with supervised(
        "slow-import", *flags, heartbeat_timeout_s=0.5, restart=restart
    ) as running:
        assert await running.exit_code() == 1

        assert len(running.all("supervisor.fork_server_stuck")) == 2


WHAT_A_FORK_WOULD_COPY = """
import asyncio, gc, os, sys, threading
from worker.imports import import_lightly
import_lightly("httpx")
import worker.cli.commands, worker.app.service
fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
print(len(os.listdir("/proc/self/task")), threading.active_count())
print([fd for fd in fds if fd.startswith(("socket:", "anon_inode:"))])
print([o for o in gc.get_objects() if isinstance(o, asyncio.AbstractEventLoop)])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"jwt", "pygments", "rich"}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_importing_the_workers_starts_nothing_and_loads_no_extras() -> None:
    done = run([sys.executable, "-c", WHAT_A_FORK_WOULD_COPY], cwd=ROOT)

    assert done.stdout.splitlines() == ["1 1", "[]", "[]", "[]"], done.stderr


def test_work_aside_returns_its_code_and_leaves_nothing_here(
    capfd: pytest.CaptureFixture[str],
) -> None:
    kept: list[int] = []

    def work() -> int:
        kept.append(1)
        return 5

    def fail() -> int:
        raise LookupError("a bug")

    def end() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert run_aside(work) == 5
    assert kept == []
    assert run_aside(fail) == 1
    assert "LookupError: a bug" in capfd.readouterr().err
    assert run_aside(end) == -signal.SIGKILL
