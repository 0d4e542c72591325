"""
Collects the changes of every database session of the Letta server in this process.

Replaces `DatabaseRegistry.async_session`, so that a session's writes have ended in the
cache before its caller goes on. SQLAlchemy's events give the changes themselves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from letta_redis.plugin.changes import Changes
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

_REGISTRY = "letta.server.db:DatabaseRegistry.async_session"


def collect(
    runtime: Runtime, ended: Callable[[Changes], None] = lambda _changes: None
) -> Callable[[], None]:
    """
    Start collecting. Returns the function that stops it.

    Args:
        ended: called with the changes of a session, once nothing older is served.
    """
    from letta.orm import Base
    from letta.server import db

    from letta_redis.plugin.delivery import Deliveries
    from letta_redis.plugin.session_events import SessionEvents

    deliveries = Deliveries(runtime, ended)
    events = SessionEvents(db.engine.sync_engine, Base.registry.mappers, deliveries)
    registry: Any = db.DatabaseRegistry
    original = registry.async_session
    events.listen()
    registry.async_session = _settling(original, events, deliveries)
    runtime.collects_changes = True
    runtime.before_closing.append(deliveries.delivered)

    def end() -> None:
        runtime.collects_changes = False
        runtime.before_closing.remove(deliveries.delivered)
        registry.async_session = original
        events.unlisten()

    return end


def _settling(
    original: Any, events: Any, deliveries: Any
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def async_session(self: Any) -> AsyncGenerator[Any, None]:
        transactions = None
        try:
            async with original(self) as session:
                transactions = events.manage(session.sync_session)
                yield session
        finally:
            if transactions is not None:
                await deliveries.settle(transactions)

    return async_session


FEATURE = Feature(
    "changes",
    "cache",
    (
        Seam(
            _REGISTRY,
            "ends the writes of a session in the cache",
            "(self)",
            digests=("60418165ddc6ef44",),
        ),
        Seam(
            "letta.orm.agent:Agent",
            "defines which rows make up an agent's state",
            None,
            digests=("6b58e330527e5786",),
        ),
    ),
    attach=collect,
)
