"""Children that die, hang, recycle or cannot start, under a real supervisor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.supervised import is_alive, start, supervised
from tests.support.wait import eventually

pytestmark = pytest.mark.faults


async def test_a_killed_child_is_replaced_after_a_backoff() -> None:
    async with supervised("serve", count=2) as running:
        first = await running.event("supervisor.child_ready", slot=1)

        os.kill(first["pid"], signal.SIGKILL)

        ended = await running.event("supervisor.child_ended", slot=1)
        wait = await running.event("supervisor.restart_scheduled", slot=1)
        second = await running.event("supervisor.child_ready", slot=1, count=2)
        assert ended["signal"] == "SIGKILL"
        assert 0 <= wait["wait_s"] <= 0.05
        assert second["pid"] != first["pid"]
        assert is_alive(second["pid"])
        assert len(running.all("supervisor.child_ready", slot=0)) == 1


async def test_a_crash_loop_ends_everything_with_1() -> None:
    async with supervised("crash", count=3, restart={"max_crashes": 3}) as running:
        assert await running.exit_code() == 1

        ended = running.all("supervisor.child_ended", exit_code=7)
        assert len(ended) == 4
        assert running.all("supervisor.crash_loop_ended")


async def test_a_crash_loop_drains_the_healthy_children() -> None:
    async with supervised("serve", count=2, restart={"max_crashes": 1}) as running:
        healthy = await running.event("supervisor.child_ready", slot=0)
        for n in (1, 2):
            ready = await running.event("supervisor.child_ready", slot=1, count=n)
            os.kill(ready["pid"], signal.SIGKILL)

        assert await running.exit_code() == 1
        assert running.all("toy.drained", pid=healthy["pid"])


async def test_a_bad_configuration_ends_with_2_and_is_reported_once() -> None:
    async with supervised("exit-2", count=4) as running:
        assert await running.exit_code() == 2

        assert await running.stderr() == "LETTA_TOY: no such toy\n"
        assert len(running.pids) == 1


async def test_a_configuration_bad_for_every_child_is_reported_once(tmp_path: Path) -> None:
    flag = tmp_path / "not yet"
    flag.touch()
    async with supervised("refuse", "--while-file", str(flag), count=4) as running:
        await running.event("toy.running", count=4)
        flag.unlink()

        assert await running.exit_code() == 2
        assert await running.stderr() == "LETTA_TOY: no such toy\n"
        assert not running.all("supervisor.child_restarted")


async def test_a_command_that_does_not_exist_is_a_bad_configuration() -> None:
    async with start("-m", "tests.support.supervise", "{}", "2", "/no/such/program") as running:
        assert await running.exit_code() == 2
        assert (
            await running.stderr() == "/no/such/program cannot be run: No such file or directory\n"
        )


async def test_a_stopped_child_is_killed_and_replaced() -> None:
    async with supervised("serve", heartbeat_timeout_s=6) as running:
        stopped = await running.event("supervisor.child_ready")

        os.kill(stopped["pid"], signal.SIGSTOP)

        lost = await running.event("supervisor.heartbeat_lost", pid=stopped["pid"])
        assert lost["silence_s"] >= 6
        await running.event("supervisor.child_ended", pid=stopped["pid"], signal="SIGKILL")
        await running.event("supervisor.child_ready", count=2)


async def test_a_child_with_a_blocked_loop_is_killed_and_replaced(tmp_path: Path) -> None:
    flag = tmp_path / "blocked"
    flag.touch()
    arguments = ("blocked", "--while-file", str(flag))
    async with supervised(*arguments, heartbeat_timeout_s=6) as running:
        blocked = await running.event("toy.running")
        lost = await running.event("supervisor.heartbeat_lost", pid=blocked["pid"])
        flag.unlink()

        assert lost["slot"] == 0
        ready = await running.event("supervisor.child_ready", slot=0)
        assert ready["pid"] != blocked["pid"]


async def test_a_child_that_never_serves_is_killed() -> None:
    async with supervised("silent", heartbeat_timeout_s=4, restart={"max_crashes": 1}) as running:
        assert await running.exit_code() == 1
        assert len(running.all("supervisor.heartbeat_lost")) == 2


async def test_without_a_heartbeat_timeout_a_stopped_child_is_left_alone() -> None:
    async with supervised("serve", count=2, heartbeat_timeout_s=0) as running:
        stopped = await running.event("supervisor.child_ready", slot=0)
        other = await running.event("supervisor.child_ready", slot=1)
        os.kill(stopped["pid"], signal.SIGSTOP)
        os.kill(other["pid"], signal.SIGKILL)
        await running.event("supervisor.child_ready", slot=1, count=2)

        assert not running.all("supervisor.heartbeat_lost")
        assert is_alive(stopped["pid"])


async def test_a_supervisor_that_was_stopped_kills_no_child() -> None:
    async with supervised("serve", heartbeat_timeout_s=6) as running:
        child = await running.event("supervisor.child_ready")
        # A frozen container stops and continues both.
        os.kill(child["pid"], signal.SIGSTOP)
        running.signal(signal.SIGSTOP)
        await _later(child["pid"], by_s=7.0)
        running.signal(signal.SIGCONT)
        os.kill(child["pid"], signal.SIGCONT)

        await _later(child["pid"], by_s=0.6)
        assert is_alive(child["pid"])
        assert not running.all("supervisor.heartbeat_lost")


async def test_recycling_replaces_a_child_and_counts_as_no_crash() -> None:
    flags = ("--jobs-per-step", "10", "--max-jobs", "20")
    async with supervised("serve", *flags, restart={"max_crashes": 1}) as running:
        await running.event("supervisor.child_ready", count=4)

        ends = running.all("supervisor.child_ended")
        assert {e["exit_code"] for e in ends} == {75}
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 0


async def test_a_child_over_its_memory_recycles_only_after_a_job() -> None:
    async with supervised("serve", "--max-rss", "1", "--jobs-per-step", "1") as running:
        await running.event("supervisor.child_ended", exit_code=75)
    async with supervised("serve", "--max-rss", "1") as running:
        await running.event("supervisor.child_ready")
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 0
        assert [e["exit_code"] for e in running.all("supervisor.child_ended")] == [0]


async def _later(pid: int, *, by_s: float) -> None:
    """Wait until the process is that much older, so that the watch has checked it."""
    then = _age_s(pid) + by_s

    async def look() -> bool:
        return _age_s(pid) > then

    await eventually(look)


def _age_s(pid: int) -> float:
    """Return a process's age in seconds, by the kernel's clock."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    now = float(Path("/proc/uptime").read_text().split()[0])
    return now - started / os.sysconf("SC_CLK_TCK")
