"""Signals and the death of the parent, with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.supervised import is_alive, start, supervised

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_drains_every_child_and_exits_0(number: signal.Signals) -> None:
    async with supervised("serve", count=2) as running:
        await running.event("supervisor.child_ready", count=2)

        running.signal(number)

        assert await running.exit_code() == 0
        assert len(running.all("toy.drained")) == 2
        assert not any(is_alive(pid) for pid in running.pids)
        assert await running.stderr() == ""


async def test_a_second_signal_forces_the_children_and_exits_3() -> None:
    async with supervised("serve", "--slow-drain", count=2) as running:
        await running.event("supervisor.child_ready", count=2)
        running.signal(signal.SIGTERM)
        await running.event("toy.drained", count=2)

        running.signal(signal.SIGTERM)

        assert await running.exit_code() == 3
        assert len(running.all("toy.forced")) == 2
        assert not running.all("supervisor.child_killed")


async def test_a_child_that_forcing_does_not_end_is_killed() -> None:
    async with supervised("serve", "--deaf") as running:
        ready = await running.event("supervisor.child_ready")
        running.signal(signal.SIGTERM)
        await running.event("toy.drained")
        running.signal(signal.SIGTERM)

        await running.event("supervisor.child_killed", pid=ready["pid"])
        assert await running.exit_code() == 3


async def test_a_drain_over_its_grace_is_killed_and_exits_3() -> None:
    async with supervised("serve", "--slow-drain", shutdown_grace_s=0.2) as running:
        await running.event("supervisor.child_ready")
        running.signal(signal.SIGTERM)

        await running.event("supervisor.child_killed")
        assert await running.exit_code() == 3


async def test_term_from_a_service_manager_to_all_forces_no_child() -> None:
    async with supervised("serve", "--slow-drain") as running:
        child = await running.event("supervisor.child_ready")
        running.signal(signal.SIGTERM)
        await running.event("toy.drained")

        os.kill(child["pid"], signal.SIGTERM)
        os.kill(child["pid"], signal.SIGTSTP)

        await running.event("toy.quieted")  # so the TERM sent before has been handled too
        assert not running.all("toy.forced")


async def test_a_child_that_crashes_while_draining_makes_the_exit_code_1() -> None:
    async with supervised("serve", "--slow-drain") as running:
        child = await running.event("supervisor.child_ready")
        running.signal(signal.SIGTERM)
        await running.event("toy.drained")
        os.kill(child["pid"], signal.SIGSEGV)

        assert await running.exit_code() == 1


async def test_tstp_quiets_children_and_an_ended_one_is_not_replaced() -> None:
    async with supervised("serve", count=2) as running:
        await running.event("supervisor.child_ready", count=2)

        running.signal(signal.SIGTSTP)

        quieted = await running.event("toy.quieted")
        await running.event("toy.quieted", count=2)
        os.kill(quieted["pid"], signal.SIGKILL)
        await running.event("supervisor.slot_left_empty")
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 0
        assert not running.all("supervisor.child_restarted")


async def test_a_killed_parent_leaves_no_child() -> None:
    async with supervised("serve", count=2) as running:
        await running.event("supervisor.child_ready", count=2)

        running.signal(signal.SIGKILL)

        await running.exit_code()
        await running.gone()
        await running.event("toy.drained", count=2)


async def test_a_killed_parent_leaves_no_stubborn_or_blocked_child(
    tmp_path: Path,
) -> None:
    flag = tmp_path / "blocked"
    flag.touch()
    stubborn = ("serve", "--deaf", "--grace", "0.2")
    blocked = ("blocked", "--while-file", str(flag), "--grace", "0.2")
    for arguments in (stubborn, blocked):
        async with supervised(*arguments) as running:
            await running.event("toy.running")
            running.signal(signal.SIGKILL)

            await running.exit_code()
            await running.gone()


async def test_a_terminals_ctrl_c_reaches_the_parent_alone() -> None:
    async with supervised("serve") as running:
        child = await running.event("supervisor.child_ready")

        assert os.getsid(child["pid"]) == child["pid"]
        assert os.getsid(running.process.pid) != child["pid"]


async def test_without_a_supervisor_signals_drain_then_force() -> None:
    async with start("-m", "tests.support.toy_worker", "serve", "--slow-drain") as running:
        await running.event("toy.running")
        running.signal(signal.SIGTSTP)
        await running.event("toy.quieted")
        running.signal(signal.SIGTERM)
        await running.event("toy.drained")
        running.signal(signal.SIGTERM)

        assert await running.exit_code() == 3
        assert running.all("toy.forced")


async def test_without_a_supervisor_a_third_signal_ends_a_stuck_worker() -> None:
    async with start("-m", "tests.support.toy_worker", "serve", "--deaf") as running:
        await running.event("toy.running")
        for event in ("toy.drained", "toy.forced"):
            running.signal(signal.SIGINT)
            await running.event(event)
        running.signal(signal.SIGINT)

        assert await running.exit_code() == 3


async def test_a_bad_configuration_without_a_supervisor_goes_to_stderr() -> None:
    async with start("-m", "tests.support.toy_worker", "refuse") as running:
        assert await running.exit_code() == 2
        assert (await running.stderr()).splitlines()[-1] == "LETTA_TOY: no such toy"
