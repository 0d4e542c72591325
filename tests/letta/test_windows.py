"""The newest messages are listed through the cache as Letta lists them, after every kind of write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from letta_redis.plugin.changes import Changes
from tests.letta.agents import Agents, counted_sql
from tests.letta.test_messages import dumped, said
from tests.support.wait import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]

WHICH: list[dict[str, Any]] = [
    {"ascending": False},
    {"ascending": False, "limit": 2},
    {"ascending": True, "limit": 2, "conversation_id": "default"},
]


async def listed(agent: str, actor: Any, **which: Any) -> list[Any]:
    from letta.services.message_manager import MessageManager

    found = await MessageManager().list_messages(actor=actor, agent_id=agent, **which)
    return list(found)


async def own(agent: str, actor: Any, **which: Any) -> list[Any]:
    """As Letta itself lists them."""
    from letta.services.message_manager import MessageManager

    method = MessageManager.list_messages.__wrapped__
    return list(await method(MessageManager(), actor=actor, agent_id=agent, **which))


async def in_conversation(conversation: str, actor: Any, *, is_own: bool, **which: Any) -> Any:
    from letta.services.conversation_manager import ConversationManager

    method = ConversationManager.list_conversation_messages
    read = method.__wrapped__ if is_own else method
    return await read(ConversationManager(), conversation, actor, **which)


async def until_hit(read: Callable[[], Awaitable[Any]]) -> None:
    async def hit() -> bool:
        with counted_sql() as statements:
            await read()
        return not statements

    await eventually(hit, deadline_s=60)


async def all_hit(agents: Agents, agent: str) -> None:
    for which in WHICH:
        await until_hit(lambda which=which: listed(agent, agents.user, **which))  # type: ignore[misc]


async def talk(agents: Agents, agent: Any) -> tuple[str, list[str]]:
    """A conversation and its messages: Letta's own first one, and two more."""
    from letta.schemas.conversation import CreateConversation
    from letta.services.conversation_manager import ConversationManager

    manager = ConversationManager()
    new = CreateConversation(summary="a conversation")
    conversation = (await manager.create_conversation(agent.id, new, agents.user)).id
    ids = [await said(agents, agent, f"in it {n}", conversation_id=conversation) for n in range(2)]
    await manager.add_messages_to_conversation(conversation, agent.id, ids, agents.user)
    return str(conversation), ids


@pytest.mark.parametrize("which", WHICH)
async def test_the_newest_are_listed_without_sql_as_by_letta(
    agents: Agents, which: dict[str, Any]
) -> None:
    agent = await agents.create()
    for n in range(3):
        await said(agents, agent, f"number {n}")
    await until_hit(lambda: listed(agent.id, agents.user, **which))

    found = await listed(agent.id, agents.user, **which)

    assert found
    assert dumped(found) == dumped(await own(agent.id, agents.user, **which))


@pytest.mark.parametrize("which", [{}, {"reverse": True, "limit": 2}])
async def test_a_conversation_is_listed_without_sql_as_by_letta(
    agents: Agents, which: dict[str, Any]
) -> None:
    conversation, _ = await talk(agents, await agents.create())

    async def read(*, is_own: bool = False) -> Any:
        return await in_conversation(conversation, agents.user, is_own=is_own, **which)

    await until_hit(read)
    assert dumped(await read()) == dumped(await read(is_own=True)) != []
    assert await in_conversation(conversation, agents.stranger, is_own=False) == []


async def test_what_narrows_a_list_is_left_to_letta(agents: Agents) -> None:
    from letta.schemas.enums import MessageRole

    agent = await agents.create()
    ids = [await said(agents, agent, f"number {n}") for n in range(3)]
    await all_hit(agents, agent.id)
    narrow: list[dict[str, Any]] = [
        {"roles": [MessageRole.user]}, {"before": ids[2], "ascending": False}, {"after": ids[0]},
        {"query_text": "number 1"}, {"limit": 1000}, {"limit": None},
    ]  # fmt: skip
    for which in narrow:
        with counted_sql() as statements:
            found = await listed(agent.id, agents.user, **which)
        assert statements, which
        assert dumped(found) == dumped(await own(agent.id, agents.user, **which)) != []


async def test_more_than_a_window_are_listed_from_either_end(agents: Agents) -> None:
    from letta.schemas.letta_message_content import TextContent
    from letta.schemas.message import Message
    from letta.services.message_manager import MessageManager

    agent = await agents.create()
    many = [
        Message(agent_id=agent.id, role="user", content=[TextContent(text=f"number {n}")])
        for n in range(101)
    ]
    await MessageManager().create_many_messages_async(many, agents.user)
    for ascending in (False, True):
        for _ in range(2):
            which = {"ascending": ascending, "limit": 100}
            found = await listed(agent.id, agents.user, **which)
            assert dumped(found) == dumped(await own(agent.id, agents.user, **which))


async def test_another_organization_gets_the_same_error_for_a_list(agents: Agents) -> None:
    agent = await agents.create()
    await all_hit(agents, agent.id)
    with pytest.raises(Exception, match=agent.id) as own_error:
        await own(agent.id, agents.stranger)
    with pytest.raises(type(own_error.value), match=agent.id):
        await listed(agent.id, agents.stranger, ascending=False)


async def _say(agents: Agents, agent: Any, _talk: str, _ids: list[str]) -> None:
    await said(agents, agent, "once more")


async def _update(agents: Agents, agent: Any, _talk: str, ids: list[str]) -> None:
    from letta.schemas.message import MessageUpdate
    from letta.services.message_manager import MessageManager

    update = MessageUpdate(content="changed")
    await MessageManager().update_message_by_id_async(ids[0], update, agents.user)


async def _delete_one(agents: Agents, agent: Any, _talk: str, ids: list[str]) -> None:
    from letta.services.message_manager import MessageManager

    await MessageManager().delete_message_by_id_async(ids[0], agents.user)


async def _delete_some(agents: Agents, agent: Any, _talk: str, ids: list[str]) -> None:
    from letta.services.message_manager import MessageManager

    await MessageManager().delete_messages_by_ids_async(ids, agents.user)


async def _delete_all(agents: Agents, agent: Any, _talk: str, _ids: list[str]) -> None:
    from letta.services.message_manager import MessageManager

    await MessageManager().delete_all_messages_for_agent_async(agent.id, agents.user)


async def _delete_conversation(agents: Agents, _agent: Any, talk: str, _ids: list[str]) -> None:
    from letta.services.conversation_manager import ConversationManager

    await ConversationManager().delete_conversation(talk, agents.user)


async def _move_into(agents: Agents, agent: Any, talk: str, _ids: list[str]) -> None:
    from letta.services.conversation_manager import ConversationManager

    moved = [await said(agents, agent, "moved")]
    await all_hit(agents, agent.id)
    manager = ConversationManager()
    await manager.add_messages_to_conversation(talk, agent.id, moved, agents.user)


async def _reorder(agents: Agents, _agent: Any, talk: str, ids: list[str]) -> None:
    """As a summary does: two messages then have one position."""
    from letta.services.conversation_manager import ConversationManager

    await ConversationManager().update_in_context_messages(talk, [ids[1], ids[0]], agents.user)


WRITES = {
    name.__name__.removeprefix("_"): name
    for name in (
        _say, _update, _delete_one, _delete_some, _delete_all, _delete_conversation, _move_into,
        _reorder,
    )
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
async def test_the_next_list_sees_a_write(agents: Agents, write: str) -> None:
    agent = await agents.create()
    await said(agents, agent)
    conversation, ids = await talk(agents, agent)
    await all_hit(agents, agent.id)
    await until_hit(lambda: in_conversation(conversation, agents.user, is_own=False))

    await WRITES[write](agents, agent, conversation, ids)

    for which in (*WHICH, {"conversation_id": conversation}):
        found = await listed(agent.id, agents.user, **which)
        assert dumped(found) == dumped(await own(agent.id, agents.user, **which))
    found, fresh = [
        await in_conversation(conversation, agents.user, is_own=is_own) for is_own in (False, True)
    ]
    assert dumped(found) == dumped(fresh)


async def test_messages_of_a_deleted_agent_are_not_listed(agents: Agents) -> None:
    agent = await agents.create()
    await said(agents, agent)
    await all_hit(agents, agent.id)
    await agents.manager.delete_agent_async(agent.id, agents.user)
    with pytest.raises(Exception, match=agent.id):
        await listed(agent.id, agents.user, ascending=False)


async def test_without_its_window_a_new_message_is_not_listed(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await agents.create()
    await said(agents, agent)
    await all_hit(agents, agent.id)
    names = Changes.names
    monkeypatch.setattr(Changes, "names", lambda self: names(self) | {"agents": set[str]()})
    message = await said(agents, agent, "once more")
    found = await listed(agent.id, agents.user, ascending=False)
    assert message not in [each.id for each in found]
