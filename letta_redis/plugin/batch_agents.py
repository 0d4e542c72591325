"""
Extends Letta's batch agent: it resumes after a crash, and past a bad item.

An agent whose messages of this step are in the database does not run its tool again.
An agent that crashed after its tool and before its messages does: tools run at least once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from letta.agents.letta_agent_batch import LettaAgentBatch
from letta.orm.message import Message as MessageRow
from letta.schemas.enums import JobStatus
from letta.schemas.tool_execution_result import ToolExecutionResult
from letta.server.db import db_registry
from sqlalchemy import select

from cache.logs import get_logger

log = get_logger("letta_redis")

_RETHINK = "rethink_memory"


class BatchAgents(LettaAgentBatch):  # type: ignore[misc]
    """The agents of one batch."""

    @classmethod
    def of(cls, server: Any, actor: Any) -> BatchAgents:
        return cls(
            message_manager=server.message_manager,
            agent_manager=server.agent_manager,
            block_manager=server.block_manager,
            passage_manager=server.passage_manager,
            batch_manager=server.batch_manager,
            sandbox_config_manager=server.sandbox_config_manager,
            job_manager=server.job_manager,
            actor=actor,
        )

    async def _extract_tool_call_from_result(self, item: Any, result: Any) -> Any:
        """An answer without a tool call ends the step of its own agent only."""
        try:
            return await super()._extract_tool_call_from_result(item, result)
        except Exception as exc:  # noqa: BLE001  (only its own agent ends)
            log.warning("letta.batch_answer_unused", item=item.id, error=repr(exc))
            return None, None, False

    async def _collect_resume_context(self, llm_batch_id: str) -> Any:
        context = await super()._collect_resume_context(llm_batch_id)
        called = {id_ for id_, name in context.tool_call_name_map.items() if name is not None}
        usable = called & set(context.agent_state_map)
        updates = [
            update
            if update.agent_id in usable
            else update._replace(request_status=JobStatus.failed)
            for update in context.request_status_updates
        ]
        return replace(
            context,
            batch_items=[item for item in context.batch_items if item.agent_id in usable],
            agent_ids=[id_ for id_ in context.agent_ids if id_ in usable],
            should_continue_map={
                id_: on for id_, on in context.should_continue_map.items() if id_ in usable
            },
            request_status_updates=updates,
        )

    async def _execute_tools(self, ctx: Any) -> list[tuple[str, Any]]:
        """Runs every tool. Letta's method skips all others when one agent rethinks its memory."""
        self._persisted = await _persisted(ctx)
        results = [(id_, _result_of(found)) for id_, found in self._persisted.items()]
        left = [id_ for id_ in ctx.agent_ids if id_ not in self._persisted]
        rethinking = [id_ for id_ in left if ctx.tool_call_name_map[id_] == _RETHINK]
        others = [id_ for id_ in left if id_ not in rethinking]
        for ids in filter(None, (rethinking, others)):
            results.extend(await super()._execute_tools(replace(ctx, agent_ids=ids)))
        return results

    async def _persist_tool_messages(
        self, exec_results: Sequence[tuple[str, Any]], ctx: Any
    ) -> dict[str, list[Any]]:
        new = [found for found in exec_results if found[0] not in self._persisted]
        made: dict[str, list[Any]] = await super()._persist_tool_messages(new, ctx)
        return {**self._persisted, **made}

    async def _prepare_next_iteration_async(
        self, exec_results: Any, ctx: Any, msg_map: dict[str, list[Any]]
    ) -> Any:
        missing = {}
        for agent_id, messages in msg_map.items():
            known = set(ctx.agent_state_map[agent_id].message_ids or ())
            missing[agent_id] = [message for message in messages if message.id not in known]
        left = {agent_id: messages for agent_id, messages in missing.items() if messages}
        return await super()._prepare_next_iteration_async(exec_results, ctx, left)


async def _persisted(ctx: Any) -> dict[str, list[Any]]:
    """The messages that an earlier try has written, by agent. An agent's are written in one step."""
    items = [item.id for item in ctx.batch_items]
    if not items:
        return {}
    query = (
        select(MessageRow)
        .where(MessageRow.batch_item_id.in_(items), MessageRow.role.in_(("assistant", "tool")))
        .order_by(MessageRow.sequence_id)
    )
    found: dict[str, list[Any]] = {}
    async with db_registry.async_session() as session:
        for row in (await session.execute(query)).scalars():
            found.setdefault(row.agent_id, []).append(row.to_pydantic())
    return found


def _result_of(messages: list[Any]) -> Any:
    returns = [part for message in messages for part in message.tool_returns or ()]
    failed = any(part.status == "error" for part in returns)
    return ToolExecutionResult(status="error" if failed else "success")
