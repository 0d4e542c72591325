"""
Puts the cache in front of the method that reads an agent's messages by id.

Each message is cached under its own id, as it is in the database: Letta fills in missing
ids of tool calls from a message's neighbors, so that step runs after the read. A message
depends on its agent, run, step and conversation, because deleting one of these changes it.
New messages of this process are read in the background, because the agent's next step needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import msgspec

from cache.errors import InvalidName
from cache.logs import get_logger
from letta_redis.plugin.seams import Feature, Seam
from letta_redis.plugin.states import NOT_CACHED, to_json

if TYPE_CHECKING:
    from cache.service import Cache
    from letta_redis.plugin.runtime import Runtime

log = get_logger("letta_redis")

_MODULE = "letta.services.message_manager"
# Most background reads at a time in one process. The next step does the others.
_AT_ONCE = 2


class LoadFailed(Exception):
    """Letta's own read raised. The caller reads again, and gets that read's error."""


@dataclass(frozen=True, slots=True)
class Row:
    """Stands for a message's row in Letta's own postprocessing."""

    id: str
    message: Any

    def to_pydantic(self) -> Any:
        return self.message


class _Names(msgspec.Struct):
    agent_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    conversation_id: str | None = None


_names = msgspec.json.Decoder(_Names)


def owners_in(message: bytes) -> list[str]:
    """The ids of the rows whose deletion changes a message."""
    if not message:
        return []
    found = _names.decode(message)
    ids = (found.agent_id, found.run_id, found.step_id, found.conversation_id)
    return [each for each in ids if each]


async def read(cache: Cache, ids: Iterable[str], actor: Any) -> list[Row]:
    """
    The messages of these ids that exist and that the actor may read, from the cache or the database.

    Raises:
        LoadFailed: Letta's own read raised.
    """
    import letta
    from letta.schemas.message import Message

    loaded: dict[str, Any] = {}

    async def loader(missing: list[str]) -> dict[str, bytes]:
        try:
            loaded.update(await _load(missing, actor))
        except Exception as exc:
            raise LoadFailed from exc
        return {message_id: to_json(message) for message_id, message in loaded.items()}

    wanted = list(dict.fromkeys(ids))
    found = await cache.agents.get_or_load_many(
        wanted,
        loader,
        scope=f"{letta.__version__}:message",
        organisation=actor.organization_id,
        depends_on=owners_in,
    )
    left = [i for i, data in found.items() if data == NOT_CACHED and i not in loaded]
    if left:
        loaded.update(await _load(left, actor))
    return [
        Row(i, loaded[i] if data == NOT_CACHED else Message.model_validate_json(data))
        for i, data in found.items()
        if data != NOT_CACHED or i in loaded
    ]


async def _load(ids: list[str], actor: Any) -> dict[str, Any]:
    """Read them as `get_messages_by_ids_async` does, before it fills anything in."""
    from letta.orm.message import Message
    from letta.server.db import db_registry

    async with db_registry.async_session() as session:
        rows = await Message.read_multiple_async(
            db_session=session, identifiers=ids, actor=actor, check_is_deleted=True
        )
        return {row.id: row.to_pydantic() for row in rows}


def _reading(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def get_messages_by_ids_async(self: Any, message_ids: Any, actor: Any) -> Any:
        cache = runtime.cache_to_read()
        if cache is None or not _is_plain(message_ids, actor):
            return await original(self, message_ids=message_ids, actor=actor)
        try:
            rows = await read(cache, message_ids, actor)
        except (LoadFailed, InvalidName):
            return await original(self, message_ids=message_ids, actor=actor)
        except Exception:
            log.exception("letta.cache_read_failed", messages=len(message_ids))
            return await original(self, message_ids=message_ids, actor=actor)
        return self._get_messages_by_id_postprocess(rows, message_ids)

    return get_messages_by_ids_async


def _is_plain(message_ids: Any, actor: Any) -> bool:
    return (
        isinstance(message_ids, list)
        and bool(message_ids)
        and all(isinstance(each, str) for each in message_ids)
        and isinstance(getattr(actor, "organization_id", None), str)
    )


def _creating(runtime: Runtime, original: Any) -> Any:
    running: set[asyncio.Task[None]] = set()

    async def warm(cache: Cache, ids: list[str], actor: Any) -> None:
        try:
            await read(cache, ids, actor)
        except Exception as exc:  # noqa: BLE001  (the next step reads them)
            log.debug("letta.warm_failed", error=repr(exc))

    @wraps(original)
    async def create_many_messages_async(
        self: Any, pydantic_msgs: Any, actor: Any, *args: Any, **more: Any
    ) -> Any:
        created = await original(self, pydantic_msgs, actor, *args, **more)
        cache = runtime.cache_to_read()
        if cache is not None and created and len(running) < _AT_ONCE:
            ids = [message.id for message in created]
            # In its own context, not in the request's.
            task = asyncio.get_running_loop().create_task(
                warm(cache, ids, actor), context=Context()
            )
            running.add(task)
            task.add_done_callback(running.discard)
        return created

    return create_many_messages_async


FEATURE = Feature(
    "messages",
    "cache",
    (
        Seam(
            f"{_MODULE}:MessageManager.get_messages_by_ids_async",
            "reads messages through the cache",
            "(self, message_ids, actor)",
            digests=("e6e8b5d15e90907d",),
            replace=_reading,
        ),
        Seam(
            f"{_MODULE}:MessageManager.create_many_messages_async",
            "reads new messages in the background",
            "(self, pydantic_msgs, actor, run_id=None, strict_mode=False, project_id=None, template_id=None, allow_partial=False)",
            digests=("4820ccc26d2b0ade",),
            replace=_creating,
        ),
        Seam(
            f"{_MODULE}:MessageManager._get_messages_by_id_postprocess",
            "puts messages in order, and fills in ids of tool calls",
            "(self, results, message_ids)",
            digests=("5a309de7f7739d34",),
        ),
        Seam(
            "letta.orm.message:Message",
            "defines which rows' deletion changes a message",
            None,
            digests=("eb38a72e44888e13",),
        ),
        Seam(
            "letta.schemas.message:Message",
            "defines what is cached of a message",
            None,
            digests=("65a4f3f7b3da1247",),
        ),
    ),
)
