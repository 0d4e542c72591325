"""A command that a user may no longer run: a script writes nothing, or its next call completes what it wrote."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

import cache
import worker
from cache.connection.scripts import READS, commands_of
from tests.app.test_security_half_states import CASES, LOST
from tests.support.half_states import RefusedStep, restore, snapshot
from tests.support.users import set_rights
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

HOMES = [Path(package.__file__ or "").parent for package in (cache, worker)]
SCRIPTS = {
    path.stem: path.read_text(encoding="utf-8")
    for home in HOMES
    for path in home.rglob("lua/*.lua")
}
# Scripts of every job or delivery: a check of all their commands would cost 5 % of it. A poll that was stopped
# leaves leases, which end: tests/queue/test_security_rights_taken.py.
UNCHECKED = {
    "attempt_deliveries",
    "beat",
    "create_delivery",
    "enqueue",
    "next_job",
    "poll",
    "renew",
    "stats",
    "unanswered_sizes",
}
# A count that cannot be written is left out, and so is a wake: a parked delivery also tries by itself.
LEFT_OUT = re.compile(rb":webhook-(history|parked:|line:)")
CACHE = {path.stem for path in HOMES[0].rglob("lua/*.lua")}


def script_of(case: str) -> str:
    if case.startswith(("begin_attempt", "record_")):
        return "attempt_deliveries"
    shown = {
        "disable_endpoint": "switch_endpoint",
        "enable_endpoint": "switch_endpoint",
        "hold": "poll",
    }
    names = [name for name in SCRIPTS if case == name or case.startswith(f"{name}_")]
    return shown.get(case) or max(names, key=len)


def whole_text(script: str) -> str:
    """Without the steps that may fail."""
    text = SCRIPTS[script]
    names = re.findall(r"--@include (\w+)$", text, re.MULTILINE)
    return text + "".join(whole_text(f"_{name}") for name in names)


async def used_by(owner: Any, step: Any) -> list[str]:
    """The commands that scripts run while a step is made."""
    names: dict[str, None] = {}
    async with owner.monitor() as monitor:

        async def listen() -> None:
            async for command in monitor.listen():
                name, _, rest = command["command"].partition(" ")
                if command["client_type"] == "lua":
                    names[name.strip('"').upper()] = None
                elif rest == "the-step-is-made":
                    return

        listener = asyncio.create_task(listen())
        await step()
        await owner.echo("the-step-is-made")
        await asyncio.wait_for(listener, 30)
    return list(names)


async def denied(
    owner: Any, command: str, step: Any, log: pytest.LogCaptureFixture
) -> tuple[bool, dict[bytes, Any]]:
    """
    Make the step while the command is denied, and again when it is allowed.

    Returns whether a script was refused or stopped, and what it left behind.
    """

    async def is_refused() -> bool:
        # A caller that tries again tells of it; the server does not count what a script refuses itself.
        told = any("may not run" in record.getMessage() for record in log.records)
        return told or task.done() or "errorstat_NOPERM" in await owner.info("errorstats")

    log.clear()
    await owner.config_resetstat()
    await set_rights(owner, f"-{command}")
    task = asyncio.ensure_future(step())
    await eventually(is_refused)
    refused = "errorstat_NOPERM" in await owner.info("errorstats")
    left = await contents(owner)
    await set_rights(owner, f"+{command}")
    try:
        await asyncio.wait_for(task, 30)  # some callers send it again themselves
    except (RedisError, RefusedStep):
        await step()
    return refused, left


CHECKED = [case for case in CASES if script_of(case) not in UNCHECKED | CACHE]
ORDERED = [
    case
    for case in CASES
    if script_of(case) in {"attempt_deliveries", "create_delivery", "enqueue"} | CACHE
]


async def test_a_denied_command_refuses_a_script_before_it_writes(
    owner: Any, weak: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for case in CHECKED:
        await owner.flushall()
        prepare, step = CASES[case](owner)[0], CASES[case](weak)[1]
        await prepare()
        before, held = await snapshot(owner), await contents(owner)
        text = whole_text(script_of(case))
        known = commands_of(text)
        *others, last = [command for command in await used_by(owner, step) if command in known]
        whole = set(await snapshot(owner))
        # The last command: without the check, all others have run by then. Where the script
        # checks few reads, every other that it makes comes before its first write.
        reads = [name for name in others if name in READS] if "--@rights of writes" in text else []
        for command in (last, *reads):
            await restore(owner, before)
            refused, left = await denied(owner, command, step, caplog)
            assert refused, (case, command)
            assert left == held, (case, command)
            assert set(await snapshot(owner)) == whole, (case, command)


async def test_a_script_that_stopped_is_completed_by_its_next_call(
    owner: Any, weak: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for case in ORDERED:
        await owner.flushall()
        prepare, step = CASES[case](owner)[0], CASES[case](weak)[1]
        await prepare()
        before = await snapshot(owner)
        commands = await used_by(owner, step)
        whole = await contents(owner)
        for command in commands:
            await restore(owner, before)
            _, left = await denied(owner, command, step, caplog)
            # A delivery's job may run at once.
            assert b"{arq}:job:webhook:d" not in left or b"{arq}:webhook:d" in left, (case, command)
            found = await contents(owner)
            differs = {key for key in whole | found if whole.get(key) != found.get(key)}
            differs = {key for key in differs if not LEFT_OUT.search(key)}
            assert differs <= LOST.get(case.partition("_")[0], set()), (case, command)


async def contents(client: Any) -> dict[bytes, Any]:
    """What the keys hold, and whether they expire; without times and the tokens of runs."""
    found: dict[bytes, Any] = {}
    for key in [key async for key in client.scan_iter(count=1000)]:
        kind = (await client.type(key)).decode()
        if kind == "string":
            value = await client.get(key)
            if b":job:webhook-end:" in key:
                value = len(value)  # its time is binary
        elif kind == "hash":
            row = await client.hgetall(key)
            value = sorted((name, name == b"run" or row[name]) for name in row)
        elif kind == "zset":
            value = sorted(await client.zrange(key, 0, -1))
        elif kind == "set":
            value = sorted(await client.smembers(key))
        elif kind == "list":
            value = await client.lrange(key, 0, -1)
        else:
            value = await client.exists(key)
        found[key] = re.sub(r"\d{10,}", "T", repr(value)), await client.pttl(key) > 0
    return found


async def test_a_script_names_the_commands_that_it_is_checked_for(owner: Any) -> None:
    listed = await owner.eval("return redis.call('COMMAND', 'LIST')", 0)
    known = {name.decode().upper() for name in listed}
    for name, text in SCRIPTS.items():
        words = set(re.findall(r"'([A-Z]{2,})'", text))
        assert set(commands_of(text)) == words & known, name


def test_every_script_is_checked_or_ordered() -> None:
    scripts = {name for name in SCRIPTS if not name.startswith("_")}
    checked = {name for name in scripts if re.search(r"\n--@rights(?! to)", SCRIPTS[name])}
    assert scripts - checked == (UNCHECKED | CACHE) & scripts
    assert {script_of(case) for case in CHECKED} | {"detach_llm"} == checked
