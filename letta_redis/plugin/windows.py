"""
Puts the cache in front of the lists of an agent's or a conversation's newest messages.

Caches a window: the ids of the newest messages, newest first. The messages themselves are
read by id (messages.py). Letta's writers do not know which message precedes theirs, so every
write that adds, moves or removes a message drops the windows of its agent and conversation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import msgspec

from cache.errors import InvalidName
from cache.logs import get_logger
from letta_redis.plugin import messages
from letta_redis.plugin.changes import windows_of
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from cache.service import Cache
    from letta_redis.plugin.runtime import Runtime

log = get_logger("letta_redis")

# Ids in a window: the default page of both endpoints.
_SIZE = 100
# Arguments that do not filter a list. With any other, Letta reads it.
_PLAIN = {"limit", "ascending", "reverse", "conversation_id", "include_err", "include_return_message_types"}  # fmt: skip
_DEFAULT = "default"  # Letta's name of an agent's messages that are in no conversation

Load = Callable[[Any], Awaitable["Window"]]


class Window(msgspec.Struct):
    """
    The ids of the newest messages, newest first.

    Args:
        ordered: False if several orders are possible, so that only the database can give the page.
    """

    ids: list[str]
    ordered: bool = True

    def page(self, limit: int, *, ascending: bool) -> list[str] | None:
        """The ids of the first page in this order; None if the window does not contain the whole page."""
        if not self.ordered:
            return None
        is_whole = len(self.ids) < _SIZE
        if ascending:
            return self.ids[::-1][:limit] if is_whole else None
        return self.ids[:limit] if is_whole or len(self.ids) >= limit else None


_decoder = msgspec.json.Decoder(Window)


@dataclass(frozen=True, slots=True)
class List:
    """
    A list of messages.

    Args:
        owner: the id of its agent or conversation.
        scope: which of the owner's lists it is.
        load: reads the window in a session.
    """

    owner: str
    scope: str
    load: Load


async def _newest(
    cache: Cache, listed: List, actor: Any, limit: int, *, ascending: bool
) -> list[Any] | None:
    """A page of the list, from the cache or the database. None: Letta must read it."""
    import letta
    from letta.server.db import db_registry

    async def loader() -> bytes:
        try:
            async with db_registry.async_session() as session:
                return msgspec.json.encode(await listed.load(session))
        except Exception as exc:
            raise messages.LoadFailed from exc

    try:
        data = await cache.agents.get_or_load(
            windows_of(listed.owner),
            loader,
            scope=f"{letta.__version__}:window:{listed.scope}",
            organisation=actor.organization_id,
            depends_on=[listed.owner],
        )
        ids = _decoder.decode(data).page(limit, ascending=ascending)
        if not ids:
            return ids
        found = {row.id: row.message for row in await messages.read(cache, ids, actor)}
    except (messages.LoadFailed, InvalidName):
        return None
    except Exception:
        log.exception("letta.cache_read_failed", owner=listed.owner)
        return None
    # A message may have been deleted since; then the page needs another one.
    return [found[i] for i in ids] if len(found) == len(ids) else None


async def _of_agent(session: Any, agent_id: str, conversation: str | None, actor: Any) -> Window:
    """The window that `MessageManager.list_messages` would select."""
    from letta.orm.conversation_messages import ConversationMessage
    from letta.orm.message import Message
    from letta.services.helpers.agent_manager_helper import validate_agent_exists_async
    from sqlalchemy import select

    await validate_agent_exists_async(session, agent_id, actor)
    query = select(Message.id).where(Message.is_deleted.is_(False), Message.agent_id == agent_id)
    if conversation == _DEFAULT:
        elsewhere = select(ConversationMessage.message_id)
        elsewhere = elsewhere.where(ConversationMessage.agent_id == agent_id)
        query = query.where(Message.conversation_id.is_(None), ~Message.id.in_(elsewhere))
    elif conversation is not None:
        query = query.where(Message.conversation_id == conversation)
    query = query.order_by(Message.sequence_id.desc()).limit(_SIZE)
    return Window(list(await session.scalars(query)))


async def _of_conversation(session: Any, conversation: str, actor: Any) -> Window:
    """
    The window that `ConversationManager.list_conversation_messages` would select.

    After a summary, Letta gives several messages the same position.
    """
    from letta.orm.conversation_messages import ConversationMessage as Link
    from sqlalchemy import select

    query = select(Link.message_id, Link.position).where(
        Link.conversation_id == conversation,
        Link.organization_id == actor.organization_id,
        Link.is_deleted.is_(False),
    )
    query = query.order_by(Link.position.desc()).limit(_SIZE + 1)
    rows = (await session.execute(query)).all()
    positions = {row.position for row in rows}
    return Window([row.message_id for row in rows[:_SIZE]], ordered=len(positions) == len(rows))


def _is_plain(owner: Any, actor: Any, limit: Any, more: Mapping[str, Any]) -> bool:
    """Whether only a limit, an order and a conversation select the messages."""
    return (
        isinstance(owner, str)
        and isinstance(getattr(actor, "organization_id", None), str)
        and isinstance(limit, int)
        and 0 < limit <= _SIZE
        and isinstance(more.get("conversation_id"), str | None)
        and not any(more[name] for name in more.keys() - _PLAIN)
    )


def _listing(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def list_messages(self: Any, actor: Any, agent_id: Any = None, **more: Any) -> Any:
        from letta.services.message_manager import backfill_missing_tool_call_ids

        cache, limit = runtime.cache_to_read(), more.get("limit", 50)
        page = None
        if cache is not None and _is_plain(agent_id, actor, limit, more):
            conversation = more.get("conversation_id")

            async def load(session: Any) -> Window:
                return await _of_agent(session, agent_id, conversation, actor)

            scope = "all" if conversation is None else f"in:{conversation}"
            ascending = bool(more.get("ascending", True))
            listed = List(agent_id, scope, load)
            page = await _newest(cache, listed, actor, limit, ascending=ascending)
        if page is None:
            return await original(self, actor=actor, agent_id=agent_id, **more)
        return backfill_missing_tool_call_ids(page, agent_id=agent_id, actor=actor)

    return list_messages


def _listing_conversation(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def list_conversation_messages(
        self: Any, conversation_id: Any, actor: Any, limit: Any = 100, **more: Any
    ) -> Any:
        from letta.schemas.message import Message

        cache = runtime.cache_to_read()
        page = None
        if cache is not None and _is_plain(conversation_id, actor, limit, more):

            async def load(session: Any) -> Window:
                return await _of_conversation(session, conversation_id, actor)

            ascending = not more.get("reverse", False)
            listed = List(conversation_id, "links", load)
            page = await _newest(cache, listed, actor, limit, ascending=ascending)
        if page is None:
            return await original(self, conversation_id, actor, limit, **more)
        return Message.to_letta_messages_from_list(
            page,
            reverse=False,
            include_err=more.get("include_err"),
            text_is_assistant_message=True,
            include_return_message_types=more.get("include_return_message_types"),
        )

    return list_conversation_messages


FEATURE = Feature(
    "windows",
    "cache",
    (
        Seam(
            "letta.services.message_manager:MessageManager.list_messages",
            "reads the newest messages of an agent through the cache",
            "(self, actor, agent_id=None, after=None, before=None, query_text=None, roles=None, limit=50, ascending=True, group_id=None, include_err=None, run_id=None, conversation_id=None)",
            digests=("0adf17c976f41f2d",),
            replace=_listing,
        ),
        Seam(
            "letta.services.conversation_manager:ConversationManager.list_conversation_messages",
            "reads the newest messages of a conversation through the cache",
            "(self, conversation_id, actor, limit=100, before=None, after=None, reverse=False, group_id=None, include_err=None, include_return_message_types=None)",
            digests=("c39fb40983a0d14a",),
            replace=_listing_conversation,
        ),
        Seam(
            "letta.orm.conversation_messages:ConversationMessage",
            "defines which messages are in a conversation",
            None,
            digests=("e5aede5dd6477389",),
        ),
    ),
)
