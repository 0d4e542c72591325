"""When the commands of one connection, or of a cluster's, are written: without a server."""

from __future__ import annotations

import asyncio

import pytest

from cache.connection.outbox import Outbox

pytestmark = pytest.mark.unit


async def test_commands_leave_behind_all_callers_that_replies_wake() -> None:
    loop, done, outbox = asyncio.get_running_loop(), list[str](), Outbox()

    def call(name: str) -> None:
        done.append(name)
        outbox.add(lambda: done.append("write"), loop)

    loop.call_soon(call, "first")
    outbox.flush_soon(loop)
    loop.call_soon(call, "second")
    outbox.flush_soon(loop)
    await asyncio.sleep(0)
    assert done == ["first", "second", "write", "write"]


async def test_a_command_of_nobodys_reply_leaves_in_the_next_tick() -> None:
    loop, done, outbox = asyncio.get_running_loop(), list[str](), Outbox()
    outbox.add(lambda: done.append("write"), loop)
    outbox.add(lambda: done.append("write"), loop)
    await asyncio.sleep(0)
    assert done == ["write", "write"]
    outbox.add(lambda: done.append("again"), loop)
    await asyncio.sleep(0)
    assert done[2:] == ["again"]


async def test_a_cluster_waits_one_tick_for_replies_and_no_longer() -> None:
    loop, done, outbox = asyncio.get_running_loop(), list[str](), Outbox(lambda: True)
    for _ in range(2):
        done.clear()
        outbox.add(lambda: done.append("write"), loop)
        await asyncio.sleep(0)
        assert done == []
        await asyncio.sleep(0)
        assert done == ["write"]


async def test_a_command_leaves_although_a_flush_could_not_be_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, done, outbox = asyncio.get_running_loop(), list[str](), Outbox()

    def fail(*_args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon", fail)
        with pytest.raises(MemoryError):
            outbox.add(lambda: done.append("lost"), loop)
    outbox.add(lambda: done.append("write"), loop)
    await asyncio.sleep(0)
    assert done == ["write"]
