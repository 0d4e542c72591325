"""
Performs an action of an operator, and writes it to the audit trail and to the log.

The API and the page perform actions through `perform`, so neither can leave the trail out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cache.logs import get_logger
from worker.client import JobQueue
from worker.errors import WorkerError
from worker.web.access import Refused, Visitor
from worker.web.api.many import subject_of
from worker.web.api.queries import BulkQuery, ByEndpoint, ByFunction, ById, ByPriority, Query
from worker.web.api.views import Done
from worker.web.site import Site

log = get_logger(__name__)

# Limit for writing down an action that was interrupted.
_RECORD_S = 2.0


@dataclass(frozen=True, slots=True)
class Action:
    """
    Something an operator can do.

    name: its path below /api/, unless `at` is. target: what it takes. run: does it through the facade.
    """

    name: str
    label: str
    summary: str
    target: type[Query]
    run: Callable[[JobQueue, Any], Awaitable[Done]]
    reply: type[Done] = Done
    at: str = ""

    @property
    def path(self) -> str:
        return self.at or self.name


async def perform(site: Site, visitor: Visitor, action: Action, target: Query) -> Done:
    """
    Run the action and write down who did it, also when it fails.

    Raises:
        Refused: the visitor may only read, or may not ask for arguments.
        WorkerError: what the facade raised.
    """
    require_operator(visitor)
    if isinstance(target, BulkQuery):
        if target.arguments and not site.show_arguments:
            raise Refused(403, "arguments can be compared only with LETTA_WEB_SHOW_ARGUMENTS")
        if target.dry_run:  # it changes nothing
            return await action.run(site.queue, target)
    try:
        done = await action.run(site.queue, target)
    except asyncio.CancelledError:
        # Out of time, or its client has gone; it may have been done.
        async with asyncio.timeout(_RECORD_S):
            await _record(site, visitor, action, target, "interrupted: perhaps done")
        raise
    except Exception as exc:
        await _record(site, visitor, action, target, f"failed: {exc}")
        raise
    await _record(site, visitor, action, target, done.message)
    return done


def require_operator(visitor: Visitor) -> None:
    """
    Raises:
        Refused: the visitor may only read.
    """
    if not visitor.may_act:
        raise Refused(403, "this token may only read; actions need LETTA_WEB_TOKEN")


async def _record(
    site: Site, visitor: Visitor, action: Action, target: Query, outcome: str
) -> None:
    subject = _subject(target)
    log.info("web.acted", actor=visitor.actor, action=action.name, subject=subject, outcome=outcome)
    try:
        await site.queue.jobs.audit.record(visitor.actor, action.name, subject, outcome)
    except WorkerError as exc:
        log.warning("web.audit_failed", action=action.name, subject=subject, error=str(exc))


def _subject(target: Query) -> str:
    if isinstance(target, ById):
        return target.id
    if isinstance(target, ByFunction):
        return f"function {target.function}"
    if isinstance(target, ByPriority):
        return f"priority {target.priority.value}"
    if isinstance(target, ByEndpoint):
        return target.name
    return subject_of(target)
