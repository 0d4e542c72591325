"""Messages are read by id through the cache, and nothing that deletes or changes them leaves one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from letta_redis.plugin.changes import Changes
from tests.letta.agents import Agents, counted_sql
from tests.support.wait import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]


async def said(agents: Agents, agent: Any, text: str = "hello", **more: Any) -> str:
    """The id of a new message."""
    from letta.schemas.letta_message_content import TextContent
    from letta.schemas.message import Message
    from letta.services.message_manager import MessageManager

    content = [TextContent(text=text)]
    message = Message(**{"agent_id": agent.id, "role": "user", "content": content, **more})
    await MessageManager().create_many_messages_async([message], agents.user)
    return str(message.id)


async def read(ids: list[str], actor: Any) -> list[Any]:
    from letta.services.message_manager import MessageManager

    found: list[Any] = await MessageManager().get_messages_by_ids_async(ids, actor)
    return found


async def own(ids: list[str], actor: Any) -> list[Any]:
    """As Letta itself reads them."""
    from letta.services.message_manager import MessageManager

    found = await MessageManager.get_messages_by_ids_async.__wrapped__(MessageManager(), ids, actor)
    return list(found)


async def until_hit(ids: list[str], actor: Any) -> None:
    async def hit() -> bool:
        with counted_sql() as statements:
            await read(ids, actor)
        return not statements

    await eventually(hit, deadline_s=60)


def dumped(messages: list[Any]) -> list[str]:
    return [message.model_dump_json() for message in messages]


async def test_messages_are_read_without_sql_as_letta_reads_them(agents: Agents) -> None:
    agent = await agents.create()
    ids = [await said(agents, agent, f"number {n}") for n in range(3)]
    await until_hit(ids, agents.user)
    wanted = [ids[2], ids[0], "message-00000000-0000-4000-8000-000000000000"]
    one, other = await read(wanted, agents.user), await read(wanted, agents.user)
    assert dumped(one) == dumped(await own(wanted, agents.user))
    assert [message.id for message in one] == wanted[:2]
    assert one[0] is not other[0]


async def test_new_messages_are_read_in_the_background(agents: Agents, cache: Any) -> None:
    agent = await agents.create()
    before = cache.stats()["loads"]
    message = await said(agents, agent)

    async def loaded() -> bool:
        return bool(cache.stats()["loads"] > before)

    await eventually(loaded, deadline_s=60)
    await until_hit([message], agents.user)


async def test_another_organization_reads_no_message(agents: Agents) -> None:
    message = await said(agents, await agents.create())
    await until_hit([message], agents.user)
    assert await read([message], agents.stranger) == []


async def test_ids_of_tool_calls_are_filled_in_as_by_letta(agents: Agents) -> None:
    from letta.schemas.message import ToolReturn
    from openai.types.chat.chat_completion_message_tool_call import (
        ChatCompletionMessageToolCall as Call,
    )

    agent = await agents.create()
    call = Call(id="call-1", type="function", function={"name": "f", "arguments": "{}"})
    calling = await said(agents, agent, role="assistant", tool_calls=[call])
    returned = await said(agents, agent, role="tool", name="f",
                          tool_returns=[ToolReturn(status="success", func_response="x")])  # fmt: skip
    ids = [calling, returned]
    await until_hit(ids, agents.user)
    assert dumped(await read(ids, agents.user)) == dumped(await own(ids, agents.user))
    assert dumped(await read([returned], agents.user)) == dumped(await own([returned], agents.user))


async def _delete_agent(agents: Agents, agent: Any, _run: str) -> None:
    await agents.manager.delete_agent_async(agent.id, agents.user)


async def _delete_run(agents: Agents, _agent: Any, run: str) -> None:
    from letta.services.run_manager import RunManager

    await RunManager().delete_run(run, agents.user)


async def _delete_all(agents: Agents, agent: Any, _run: str) -> None:
    from letta.services.message_manager import MessageManager

    await MessageManager().delete_all_messages_for_agent_async(agent.id, agents.user)


Delete = Callable[[Agents, Any, str], Awaitable[None]]
_DELETE: dict[str, Delete] = {"agent": _delete_agent, "run": _delete_run, "all": _delete_all}


async def _said_in_a_run(agents: Agents) -> tuple[Any, str, str]:
    from letta.schemas.run import Run
    from letta.services.run_manager import RunManager

    agent = await agents.create()
    run = await RunManager().create_run(pydantic_run=Run(agent_id=agent.id), actor=agents.user)
    message = await said(agents, agent, run_id=run.id)
    await until_hit([message], agents.user)
    return agent, run.id, message


@pytest.mark.parametrize("what", _DELETE)
async def test_what_a_deletion_cascades_to_is_seen(agents: Agents, what: str) -> None:
    agent, run, message = await _said_in_a_run(agents)
    await _DELETE[what](agents, agent, run)
    assert dumped(await read([message], agents.user)) == dumped(await own([message], agents.user))


@pytest.mark.parametrize("what", _DELETE)
async def test_without_its_names_it_is_not_seen(
    agents: Agents, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Changes.names
    left_out = {"dependencies": set[str]()}
    if what != "all":  # SQLAlchemy changes the messages of a run that it has loaded one by one
        left_out["agents"] = set()
    agent, run, message = await _said_in_a_run(agents)
    monkeypatch.setattr(Changes, "names", lambda self: names(self) | left_out)
    await _DELETE[what](agents, agent, run)
    assert dumped(await read([message], agents.user)) != dumped(await own([message], agents.user))


async def test_every_way_from_a_deletion_to_a_message_is_known(agents: Agents) -> None:
    """What the database changes in messages by itself: from these tables, and no other."""
    from letta.server.db import db_registry
    from sqlalchemy import text

    query = text(
        "SELECT conrelid::regclass::text, confrelid::regclass::text, confdeltype::text"
        " FROM pg_constraint WHERE contype = 'f' AND confdeltype <> 'a'"
    )
    async with db_registry.async_session() as session:
        edges = [tuple(row) for row in await session.execute(query)]
    assert agents.user
    parents = {parent: kind for child, parent, kind in edges if child == "messages"}
    assert parents == {"agents": "c", "runs": "n", "steps": "n", "conversations": "n"}
    # A deletion reaches those by cascade from an agent only, whose conversations are its own.
    assert [edge for edge in edges if edge[0] in parents and edge[2] == "c"] == [
        ("conversations", "agents", "c")
    ]
