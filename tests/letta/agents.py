"""Makes organizations and agents in Letta's database, and counts the SQL that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Agents:
    """Two organizations, each with a user, and the manager that reads and writes their agents."""

    manager: Any
    user: Any
    stranger: Any

    async def create(self, **fields: Any) -> Any:
        """An agent of `user` with two blocks and Letta's own tools."""
        from letta.schemas.agent import CreateAgent
        from letta.schemas.block import CreateBlock
        from letta.schemas.embedding_config import EmbeddingConfig
        from letta.schemas.llm_config import LLMConfig

        given: dict[str, Any] = {
            "agent_type": "memgpt_v2_agent",
            "system": "a system prompt",
            "memory_blocks": [
                CreateBlock(label="human", value="a person"),
                CreateBlock(label="persona", value="an agent"),
            ],
            "llm_config": LLMConfig.default_config("gpt-4o-mini"),
            "embedding_config": EmbeddingConfig.default_config(provider="openai"),
            "tags": ["a tag"],
            "initial_message_sequence": [],
            **fields,
        }
        return await self.manager.create_agent_async(CreateAgent(**given), actor=self.user)


async def make_agents() -> Agents:
    from letta.schemas.organization import Organization
    from letta.schemas.user import User
    from letta.services.agent_manager import AgentManager
    from letta.services.organization_manager import OrganizationManager
    from letta.services.tool_manager import ToolManager
    from letta.services.user_manager import UserManager

    users = []
    for name in ("ours", "theirs"):
        organization = await OrganizationManager().create_organization_async(
            Organization(name=name)
        )
        user = User(name=name, organization_id=organization.id)
        users.append(await UserManager().create_actor_async(user))
    await ToolManager().upsert_base_tools_async(actor=users[0])
    return Agents(AgentManager(), *users)


@contextmanager
def counted_sql() -> Iterator[list[str]]:
    """The statements that Letta sends to its database during the block."""
    from letta.server.db import engine
    from sqlalchemy import event

    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)
