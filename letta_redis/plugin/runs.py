"""
Saves a run the statements whose results nobody uses.

When a run begins, Letta loads its agent with all relationships, ten statements, to read
one column; when it ends, twice more to store the reason. Here these reads load only the
agent's own row. The background reloads an agent after its run, not after each write in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from letta_redis.plugin.rows import ENDED, text_of
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from letta_redis.plugin.runtime import Runtime

# The task that is inside. A task that it starts inherits the context, but is not inside.
_Inside = ContextVar[asyncio.Task[Any] | None]
_ending: _Inside = ContextVar("letta_redis_ending", default=None)
_own_row: _Inside = ContextVar("letta_redis_own_row", default=None)


@contextmanager
def _inside(where: _Inside) -> Iterator[None]:
    token = where.set(asyncio.current_task())
    try:
        yield
    finally:
        where.reset(token)


def _is_inside(where: _Inside) -> bool:
    task = where.get()
    return task is not None and task is asyncio.current_task()


def _beginning(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def create_run(self: Any, pydantic_run: Any, actor: Any) -> Any:
        if not runtime.switches.agent_cache:
            return await original(self, pydantic_run=pydantic_run, actor=actor)
        with _inside(_own_row):
            run = await original(self, pydantic_run=pydantic_run, actor=actor)
        runtime.runs.begin(run.id, run.agent_id)
        return run

    return create_run


def _ending_it(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def update_run_by_id_async(
        self: Any, run_id: Any, update: Any, *args: Any, **more: Any
    ) -> Any:
        if text_of(update.status) in ENDED["run"]:
            runtime.runs.end(run_id)
        with _inside(_ending):
            return await original(self, run_id, update, *args, **more)

    return update_run_by_id_async


def _noting(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def update_agent_async(self: Any, agent_id: Any, agent_update: Any, actor: Any) -> Any:
        if not _is_inside(_ending) or not runtime.switches.agent_cache:
            return await original(self, agent_id, agent_update, actor)
        with _inside(_own_row):
            return await original(self, agent_id, agent_update, actor)

    return update_agent_async


def _showing(_runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def to_pydantic_async(
        self: Any, include_relationships: Any = None, include: Any = None, decrypt: bool = True
    ) -> Any:
        if _is_inside(_own_row):
            include_relationships, include = set(), []
        return await original(self, include_relationships, include, decrypt)

    return to_pydantic_async


def _leave_out(_runtime: Runtime) -> Callable[[], None]:
    """Load no relationships of agents in the statements inside."""
    from letta.orm.agent import Agent
    from sqlalchemy import event, inspect
    from sqlalchemy.orm import Session, lazyload

    left_out = [lazyload(getattr(Agent, each.key)) for each in inspect(Agent).relationships]

    def leave_out(state: Any) -> None:
        if state.is_select and _is_inside(_own_row) and _selects(state.statement, Agent):
            state.statement = state.statement.options(*left_out)

    event.listen(Session, "do_orm_execute", leave_out)
    return lambda: event.remove(Session, "do_orm_execute", leave_out)


def _selects(statement: Any, entity: type) -> bool:
    columns: list[Any] = getattr(statement, "column_descriptions", [])
    return bool(columns) and columns[0]["expr"] is entity


FEATURE = Feature(
    "runs",
    "cache",
    (
        Seam(
            "letta.services.run_manager:RunManager.create_run",
            "loads only the own row of a run's agent, to read its project",
            "(self, pydantic_run, actor)",
            digests=("150969674a59aefb",),
            replace=_beginning,
        ),
        Seam(
            "letta.services.run_manager:RunManager.update_run_by_id_async",
            "stores in the agent why a run has ended, and ignores the result",
            "(self, run_id, update, actor, refresh_result_messages=True, conversation_id=None)",
            digests=("429df1e445848abc",),
            replace=_ending_it,
        ),
        Seam(
            "letta.services.agent_manager:AgentManager.update_agent_async",
            "loads only the agent's own row where the result is ignored",
            "(self, agent_id, agent_update, actor)",
            digests=("d03a557f83d96aec",),
            replace=_noting,
        ),
        Seam(
            "letta.orm.agent:Agent.to_pydantic_async",
            "returns only the agent's own row where the rest is ignored",
            "(self, include_relationships=None, include=None, decrypt=True)",
            digests=("05ff49a96a660e43",),
            replace=_showing,
        ),
    ),
    attach=_leave_out,
)
