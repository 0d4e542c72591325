"""
Draws random writes of Letta's managers, on the rows of one organization.

Each operation is a coroutine without arguments. It may fail as it may in production (a
name that is taken, a row that is gone): whoever runs it takes any error of Letta's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from letta.orm.agents_tags import AgentsTags
from letta.orm.block import Block as BlockRow
from letta.orm.conversation import Conversation as ConversationRow
from letta.orm.files_agents import FileAgent
from letta.orm.message import Message as MessageRow
from letta.orm.sandbox_config import AgentEnvironmentVariable
from letta.orm.step import Step as StepRow
from letta.orm.tool import Tool as ToolRow
from letta.schemas.agent import CreateAgent, UpdateAgent
from letta.schemas.block import Block, BlockUpdate, CreateBlock
from letta.schemas.conversation import CreateConversation
from letta.schemas.embedding_config import EmbeddingConfig
from letta.schemas.file import FileMetadata
from letta.schemas.group import GroupCreate, GroupUpdate, SupervisorManager, SupervisorManagerUpdate
from letta.schemas.identity import (
    IdentityCreate,
    IdentityProperty,
    IdentityType,
    IdentityUpdate,
    IdentityUpsert,
)
from letta.schemas.letta_message_content import TextContent
from letta.schemas.llm_config import LLMConfig
from letta.schemas.message import Message, MessageUpdate
from letta.schemas.openai.chat_completion_response import UsageStatistics
from letta.schemas.run import Run
from letta.schemas.source import Source, SourceUpdate
from letta.schemas.tool import Tool, ToolUpdate
from letta.server.db import db_registry
from letta.services.agent_manager import AgentManager
from letta.services.archive_manager import ArchiveManager
from letta.services.block_manager import BlockManager
from letta.services.conversation_manager import ConversationManager
from letta.services.file_manager import FileManager
from letta.services.files_agents_manager import FileAgentManager
from letta.services.group_manager import GroupManager
from letta.services.identity_manager import IdentityManager
from letta.services.message_manager import MessageManager
from letta.services.run_manager import RunManager
from letta.services.source_manager import SourceManager
from letta.services.step_manager import StepManager
from letta.services.tool_manager import ToolManager
from sqlalchemy import delete, func, select, update

Operation = Callable[[], Awaitable[Any]]
_EMBEDDING = EmbeddingConfig.default_config(provider="openai")
_MODEL = LLMConfig.default_config("gpt-4o-mini")
_MOST_AGENTS = 4


def _row(row: Any) -> Any:
    return tuple(row) if isinstance(row, list) else row  # JSON has no tuples


class RolledBack(Exception):
    """Ends a transaction that must not commit."""


class World:
    """
    The rows that the operations work on, and the operations.

    Attributes:
        agents: ids of agents that were created, deleted ones too.
    """

    def __init__(self, random: Random, actor: Any) -> None:
        self.random = random
        self.actor = actor
        self.agents: list[str] = []
        self.alive: list[str] = []
        self.blocks: list[str] = []
        self.tools: list[str] = []
        self.sources: list[str] = []
        self.identities: list[str] = []
        self.groups: list[str] = []
        self.files: list[tuple[str, str, str]] = []  # id, name, source
        self.archives: list[str] = []
        self.said: list[tuple[str, str, str]] = []  # run, step and conversation of a message
        self._count = 0
        self.agent_manager = AgentManager()
        self.block_manager = BlockManager()
        self.tool_manager = ToolManager()
        self.source_manager = SourceManager()
        self.identity_manager = IdentityManager()
        self.group_manager = GroupManager()
        self.file_manager = FileManager()
        self.attachments = FileAgentManager()
        self.archive_manager = ArchiveManager()
        self.message_manager = MessageManager()
        self.conversation_manager = ConversationManager()
        self.run_manager = RunManager()
        self.step_manager = StepManager()
        self.operations: dict[str, Operation] = {
            name.removeprefix("do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_")
        }

    def draw(self) -> tuple[str, Operation]:
        return self.random.choice(sorted(self.operations.items()))

    def share(self) -> dict[str, Any]:
        """The rows, as plain data for another process."""
        names = ("agents", "alive", "blocks", "tools", "sources", "identities", "groups", "files",
                 "archives")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def adopt(self, rows: dict[str, Any]) -> None:
        """Work on the rows of another process, too. Writes of those that it deleted fail."""
        for name, theirs in rows.items():
            rows_here = getattr(self, name)
            rows_here += [row for row in map(_row, theirs) if row not in rows_here]

    async def populate(self) -> None:
        for _ in range(2):
            for create in (self.do_create_block, self.do_upsert_tools, self.do_upsert_sources,
                           self.do_create_identity, self.do_create_agent):  # fmt: skip
                await create()
        await self.do_create_file()

    # Names that differ, and that repeat where an upsert should meet an existing row.

    def _word(self) -> str:
        self._count += 1
        return f"w{self._count}-{self.random.randrange(10**6)}"

    def _one(self, rows: list[Any]) -> Any:
        return self.random.choice(rows)

    def _some(self, rows: list[Any]) -> list[Any]:
        return self.random.sample(rows, self.random.randint(0, min(len(rows), 3)))

    # Agents.

    async def do_create_agent(self) -> None:
        if len(self.alive) >= _MOST_AGENTS:
            await self.do_update_agent()
            return
        state = await self.agent_manager.create_agent_async(
            CreateAgent(
                name=self._word(),
                agent_type="memgpt_v2_agent",
                memory_blocks=[CreateBlock(label="human", value=self._word())],
                block_ids=self._some(self.blocks),
                tool_ids=self._some(self.tools),
                source_ids=self._some(self.sources),
                identity_ids=self._some(self.identities),
                tags=[self._word()],
                tool_exec_environment_variables={"KEY": self._word()},
                llm_config=_MODEL,
                embedding_config=_EMBEDDING,
                include_base_tools=False,
                initial_message_sequence=[],
            ),
            self.actor,
        )
        self.agents.append(state.id)
        self.alive.append(state.id)
        self.blocks += [block.id for block in state.blocks if block.id not in self.blocks]

    async def do_update_agent(self) -> None:
        choices: dict[str, Any] = {
            "name": self._word(),
            "description": self._word(),
            "metadata": {"k": self._word()},
            "tags": [self._word(), "shared"],
            "tool_ids": self._some(self.tools),
            "source_ids": self._some(self.sources),
            "block_ids": self._some(self.blocks),
            "identity_ids": self._some(self.identities),
            "tool_exec_environment_variables": {self._word(): self._word(), "KEY": "v"},
            "per_file_view_window_char_limit": self.random.randint(1000, 9000),
        }
        picked = self.random.sample(sorted(choices), self.random.randint(1, 3))
        await self.agent_manager.update_agent_async(
            self._one(self.alive), UpdateAgent(**{key: choices[key] for key in picked}), self.actor
        )

    async def do_delete_agent(self) -> None:
        if len(self.alive) > 2:
            agent = self._one(self.alive)
            await self.agent_manager.delete_agent_async(agent, self.actor)
            self.alive.remove(agent)

    async def do_attach(self) -> None:
        agent, manager = self._one(self.alive), self.agent_manager
        call, rows = self._one([
            (manager.attach_block_async, self.blocks),
            (manager.attach_tool_async, self.tools),
            (manager.attach_source_async, self.sources),
        ])  # fmt: skip
        await call(agent, self._one(rows), self.actor)

    async def do_detach(self) -> None:
        agent, manager = self._one(self.alive), self.agent_manager
        state = await manager.get_agent_by_id_async(agent, self.actor)
        call, rows = self._one([
            (manager.detach_block_async, state.blocks),
            (manager.detach_tool_async, state.tools),
            (manager.detach_source_async, state.__dict__["sources"]),
        ])  # fmt: skip
        await call(agent, self._one(rows).id, self.actor)

    async def do_attach_tools(self) -> None:
        await self.agent_manager.bulk_attach_tools_async(
            self._one(self.alive), self._some(self.tools), self.actor
        )

    async def do_detach_tools(self) -> None:
        await self.agent_manager.bulk_detach_tools_async(
            self._one(self.alive), self._some(self.tools), self.actor
        )

    async def do_modify_approvals(self) -> None:
        agent = self._one(self.alive)
        state = await self.agent_manager.get_agent_by_id_async(agent, self.actor)
        await self.agent_manager.modify_approvals_async(
            agent, self._one(state.tools).name, self.random.random() < 0.5, self.actor
        )

    # Blocks.

    async def do_create_block(self) -> None:
        block = await self.block_manager.create_or_update_block_async(
            Block(label=f"label{len(self.blocks)}", value=self._word()), self.actor
        )
        self.blocks.append(block.id)

    async def do_update_block(self) -> None:
        changes = self._one(
            [{"value": self._word()}, {"description": self._word()}, {"limit": 4000}]
        )
        await self.block_manager.update_block_async(
            self._one(self.blocks), BlockUpdate(**changes), self.actor
        )

    async def do_update_blocks(self) -> None:
        values = {block: self._word() for block in self._some(self.blocks)}
        await self.block_manager.bulk_update_block_values_async(values, self.actor)

    async def do_rewrite_block(self) -> None:
        await self.block_manager.create_or_update_block_async(
            Block(id=self._one(self.blocks), label="label0", value=self._word()), self.actor
        )

    async def do_undo_block(self) -> None:
        block = self._one(self.blocks)
        await self.block_manager.checkpoint_block_async(block, self.actor)
        await self.do_update_block()
        await self.block_manager.checkpoint_block_async(block, self.actor)
        await self.block_manager.undo_checkpoint_block(block, self.actor)

    async def do_delete_block(self) -> None:
        if len(self.blocks) > 3:
            block = self._one(self.blocks)
            await self.block_manager.delete_block_async(block, self.actor)
            self.blocks.remove(block)

    async def do_modify_block_by_label(self) -> None:
        await self.agent_manager.modify_block_by_label_async(
            self._one(self.alive), "human", BlockUpdate(value=self._word()), self.actor
        )

    # Tools and sources. Upserts name a new id for the row that has the name already.

    def _tool(self, name: str) -> Tool:
        schema = {"name": name, "description": self._word(), "parameters": {"type": "object"}}
        source = f"def {name}():\n    '''{schema['description']}'''\n    return 1\n"
        return Tool(name=name, source_code=source, json_schema=schema, source_type="python",
                    description=schema["description"])  # fmt: skip

    async def do_create_tool(self) -> None:
        tool = await self.tool_manager.create_or_update_tool_async(
            self._tool(f"tool{self.random.randrange(6)}"), self.actor
        )
        if tool.id not in self.tools:
            self.tools.append(tool.id)

    async def do_upsert_tools(self) -> None:
        tools = [self._tool(f"tool{n}") for n in self.random.sample(range(6), 2)]
        for tool in await self.tool_manager.bulk_upsert_tools_async(tools, self.actor):
            if tool.id not in self.tools:
                self.tools.append(tool.id)

    async def do_update_tool(self) -> None:
        await self.tool_manager.update_tool_by_id_async(
            self._one(self.tools), ToolUpdate(description=self._word()), self.actor
        )

    async def do_delete_tool(self) -> None:
        if len(self.tools) > 2:
            tool = self._one(self.tools)
            await self.tool_manager.delete_tool_by_id_async(tool, self.actor)
            self.tools.remove(tool)

    def _source(self, name: str) -> Source:
        return Source(name=name, description=self._word(), embedding_config=_EMBEDDING)

    async def do_create_source(self) -> None:
        source = await self.source_manager.create_source(
            self._source(f"source{self.random.randrange(5)}"), self.actor
        )
        if source.id not in self.sources:
            self.sources.append(source.id)

    async def do_upsert_sources(self) -> None:
        sources = [self._source(f"source{n}") for n in self.random.sample(range(5), 2)]
        for source in await self.source_manager.bulk_upsert_sources_async(sources, self.actor):
            if source.id not in self.sources:
                self.sources.append(source.id)

    async def do_update_source(self) -> None:
        await self.source_manager.update_source(
            self._one(self.sources), SourceUpdate(description=self._word()), self.actor
        )

    async def do_delete_source(self) -> None:
        if len(self.sources) > 1:
            source = self._one(self.sources)
            await self.source_manager.delete_source(source, self.actor)
            self.sources.remove(source)
            self.files = [file for file in self.files if file[2] != source]

    # Identities and groups.

    async def do_create_identity(self) -> None:
        identity = await self.identity_manager.create_identity_async(
            IdentityCreate(identifier_key=self._word(), name=self._word(),
                           identity_type=IdentityType.user),
            self.actor,
        )  # fmt: skip
        self.identities.append(identity.id)

    async def do_update_identity(self) -> None:
        agents = self._one([None, self._some(self.alive)])
        await self.identity_manager.update_identity_async(
            self._one(self.identities), IdentityUpdate(name=self._word(), agent_ids=agents),
            self.actor, replace=self.random.random() < 0.5,
        )  # fmt: skip

    async def do_upsert_identity(self) -> None:
        identity = await self.identity_manager.get_identity_async(
            self._one(self.identities), self.actor
        )
        await self.identity_manager.upsert_identity_async(
            IdentityUpsert(identifier_key=identity.identifier_key, name=self._word(),
                           identity_type=IdentityType.org, agent_ids=self._some(self.alive)),
            self.actor,
        )  # fmt: skip

    async def do_set_identity_properties(self) -> None:
        await self.identity_manager.upsert_identity_properties_async(
            self._one(self.identities),
            [IdentityProperty(key="k", value=self._word(), type="string")],
            self.actor,
        )

    async def do_attach_identity(self) -> None:
        call = self._one([self.identity_manager.attach_agent_async,
                          self.identity_manager.detach_agent_async])  # fmt: skip
        await call(identity_id=self._one(self.identities), agent_id=self._one(self.alive),
                   actor=self.actor)  # fmt: skip

    async def do_delete_identity(self) -> None:
        if len(self.identities) > 1:
            identity = self._one(self.identities)
            await self.identity_manager.delete_identity_async(identity, self.actor)
            self.identities.remove(identity)

    async def do_create_group(self) -> None:
        managers = []
        for group_id in self.groups:
            group = await self.group_manager.retrieve_group_async(group_id, self.actor)
            managers.append(group.manager_agent_id)
        free = [agent for agent in self.alive if agent not in managers]
        if free:  # of several groups of one manager, Letta shows any
            manager = SupervisorManager(manager_agent_id=self._one(free))
            group = await self.group_manager.create_group_async(
                GroupCreate(agent_ids=self._some(self.alive), description=self._word(),
                            manager_config=manager),
                self.actor,
            )  # fmt: skip
            self.groups.append(group.id)

    async def do_modify_group(self) -> None:
        await self.group_manager.modify_group_async(
            self._one(self.groups),
            GroupUpdate(description=self._word(), agent_ids=self._some(self.alive) or None),
            self.actor,
        )

    async def do_hand_over_group(self) -> None:
        group_id = self._one(self.groups)
        groups = [await self.group_manager.retrieve_group_async(each, self.actor)
                  for each in self.groups]  # fmt: skip
        managers = {group.manager_agent_id for group in groups}
        to = self._one([agent for agent in self.alive if agent not in managers])
        await self.group_manager.modify_group_async(
            group_id,
            GroupUpdate(manager_config=SupervisorManagerUpdate(manager_agent_id=to)),
            self.actor,
        )

    async def do_delete_group(self) -> None:
        group = self._one(self.groups)
        await self.group_manager.delete_group_async(group, self.actor)
        self.groups.remove(group)

    # Files and archives.

    async def do_create_file(self) -> None:
        source, name = self._one(self.sources), self._word()
        file = await self.file_manager.create_file(
            FileMetadata(file_name=name, source_id=source,
                         organization_id=self.actor.organization_id),
            self.actor, text=self._word(),
        )  # fmt: skip
        self.files.append((file.id, name, source))

    async def do_attach_file(self) -> None:
        file, name, source = self._one(self.files)
        await self.attachments.attach_file(
            agent_id=self._one(self.alive), file_id=file, file_name=name, source_id=source,
            actor=self.actor, max_files_open=3, visible_content=self._word(),
        )  # fmt: skip

    async def do_attach_files(self) -> None:
        files = [await self.file_manager.get_file_by_id(file, self.actor)
                 for file, _, _ in self._some(self.files)]  # fmt: skip
        await self.attachments.attach_files_bulk(
            agent_id=self._one(self.alive), files_metadata=files, max_files_open=2,
            visible_content_map={file.file_name: self._word() for file in files}, actor=self.actor,
        )  # fmt: skip

    async def do_update_file(self) -> None:
        agent, (file, name, _) = self._one(self.alive), self._one(self.files)
        content, is_open = self._word(), self.random.random() < 0.7
        if self.random.random() < 0.5:
            await self.attachments.update_file_agent_by_id(
                agent_id=agent, file_id=file, actor=self.actor, is_open=is_open,
                visible_content=content,
            )  # fmt: skip
        else:
            await self.attachments.update_file_agent_by_name(
                agent_id=agent, file_name=name, actor=self.actor, is_open=is_open,
                visible_content=content,
            )  # fmt: skip

    async def do_access_file(self) -> None:
        agent, (file, name, source) = self._one(self.alive), self._one(self.files)
        await self._one([
            lambda: self.attachments.mark_access(agent_id=agent, file_id=file, actor=self.actor),
            lambda: self.attachments.mark_access_bulk(
                agent_id=agent, file_names=[name], actor=self.actor),
            lambda: self.attachments.close_all_other_files(
                agent_id=agent, keep_file_names=[], actor=self.actor),
            lambda: self.attachments.enforce_max_open_files_and_open(
                agent_id=agent, file_id=file, file_name=name, source_id=source, actor=self.actor,
                visible_content=self._word(), max_files_open=1),
        ])()  # fmt: skip

    async def do_detach_file(self) -> None:
        agent, (file, _, _) = self._one(self.alive), self._one(self.files)
        if self.random.random() < 0.5:
            await self.attachments.detach_file(agent_id=agent, file_id=file, actor=self.actor)
        else:
            pairs = [(agent, each) for each, _, _ in self.files]
            await self.attachments.detach_file_bulk(agent_file_pairs=pairs, actor=self.actor)

    async def do_delete_file(self) -> None:
        file = self._one(self.files)
        await self.file_manager.delete_file(file[0], self.actor)
        self.files.remove(file)

    async def do_archive(self) -> None:
        agent = self._one(self.alive)
        if not self.archives or self.random.random() < 0.3:
            archive = await self.archive_manager.create_archive_async(
                self._word(), embedding_config=_EMBEDDING, actor=self.actor
            )
            self.archives.append(archive.id)
        archive_id = self._one(self.archives)
        call = self._one([self.archive_manager.attach_agent_to_archive_async,
                          self.archive_manager.detach_agent_from_archive_async])  # fmt: skip
        await call(agent_id=agent, archive_id=archive_id, actor=self.actor)

    # Messages and conversations.

    async def do_append_messages(self) -> None:
        agent = self._one(self.alive)
        messages = [Message(agent_id=agent, role="user", content=[TextContent(text=self._word())])]
        await self.agent_manager.append_to_in_context_messages_async(
            messages, agent_id=agent, actor=self.actor
        )

    async def do_set_message_ids(self) -> None:
        agent = self._one(self.alive)
        state = await self.agent_manager.get_agent_by_id_async(agent, self.actor, [])
        ids = list(state.message_ids or [])[:3]
        await self.agent_manager.update_message_ids_async(agent, ids, self.actor)

    async def do_reset_messages(self) -> None:
        await self.agent_manager.reset_messages_async(self._one(self.alive), self.actor)

    async def do_rebuild_prompt(self) -> None:
        await self.agent_manager.rebuild_system_prompt_async(
            self._one(self.alive), self.actor, force=True
        )

    async def _message(self) -> str:
        query = select(MessageRow.id).where(MessageRow.agent_id.in_(self.alive))
        async with db_registry.async_session() as session:
            return str(self._one((await session.execute(query)).scalars().all()))

    async def do_say_in_a_run(self) -> None:
        agent = self._one(self.alive)
        conversation = await self.conversation_manager.create_conversation(
            agent, CreateConversation(summary=self._word()), self.actor
        )
        run = await self.run_manager.create_run(Run(agent_id=agent), self.actor)
        step = await self.step_manager.log_step_async(
            actor=self.actor, agent_id=agent, provider_name="p", provider_category="base",
            model="m", model_endpoint=None, context_window_limit=1, run_id=run.id, provider_id=None,
            usage=UsageStatistics(completion_tokens=1, prompt_tokens=1, total_tokens=2),
        )  # fmt: skip
        content = [TextContent(text=self._word())]
        said = Message(agent_id=agent, role="user", content=content, run_id=run.id, step_id=step.id,
                       conversation_id=conversation.id)  # fmt: skip
        await self.message_manager.create_many_messages_async([said], self.actor)
        self.said.append((run.id, step.id, conversation.id))

    async def do_forget_where_it_was_said(self) -> None:
        run, step, conversation = self.said.pop(self.random.randrange(len(self.said)))
        which = self.random.randrange(3)
        if which == 0:
            await self.run_manager.delete_run(run, self.actor)
            return
        row, row_id = [(StepRow, step), (ConversationRow, conversation)][which - 1]
        async with db_registry.async_session() as session:
            await session.execute(delete(row).where(row.id == row_id))

    async def do_update_message(self) -> None:
        update = MessageUpdate(content=self._word())
        await self.message_manager.update_message_by_id_async(
            await self._message(), update, self.actor
        )

    async def do_delete_message(self) -> None:
        message = await self._message()
        if self.random.random() < 0.5:
            await self.message_manager.delete_message_by_id_async(message, self.actor)
        else:
            await self.message_manager.delete_messages_by_ids_async([message], self.actor)

    async def do_delete_messages(self) -> None:
        await self.message_manager.delete_all_messages_for_agent_async(
            self._one(self.alive),
            self.actor,
            exclude_ids=self._one([None, [await self._message()]]),
        )

    async def do_update_messages_without_ids(self) -> None:
        change = update(MessageRow).where(MessageRow.agent_id == self._one(self.alive))
        async with db_registry.async_session() as session:
            await session.execute(change.values(name=self._word()))

    async def do_conversation(self) -> None:
        conversation = await self.conversation_manager.create_conversation(
            self._one(self.alive),
            CreateConversation(summary=self._word(), isolated_block_labels=["human"]),
            self.actor,
        )
        await self.conversation_manager.delete_conversation(conversation.id, self.actor)

    # What no manager does, but code in Letta's process may.

    async def do_roll_back(self) -> None:
        async with db_registry.async_session() as session:
            block = await session.get(BlockRow, self._one(self.blocks))
            block.value = self._word()
            await session.flush()
            raise RolledBack

    async def do_savepoint(self) -> None:
        async with db_registry.async_session() as session:
            kept = await session.get(BlockRow, self._one(self.blocks))
            async with session.begin_nested():
                kept.description = self._word()
            try:
                async with session.begin_nested():
                    lost = await session.get(ToolRow, self._one(self.tools))
                    lost.description = self._word()
                    await session.flush()
                    raise RolledBack
            except RolledBack:
                pass

    async def do_commit_twice(self) -> None:
        async with db_registry.async_session() as session:
            for _ in range(2):
                block = await session.get(BlockRow, self._one(self.blocks))
                block.value = self._word()
                await session.commit()

    async def do_statements_without_ids(self) -> None:
        tag = self._word()
        async with db_registry.async_session() as session:
            await self._one([
                lambda: session.execute(update(AgentsTags).where(AgentsTags.tag == "shared")
                                        .values(tag=tag)),
                lambda: session.execute(delete(AgentsTags).where(AgentsTags.tag.like("w%"))),
                lambda: session.execute(update(BlockRow).where(BlockRow.label == "human")
                                        .values(value=func.concat(BlockRow.value, "x"))),
                lambda: session.execute(update(AgentEnvironmentVariable)
                                        .where(AgentEnvironmentVariable.key == "KEY")
                                        .values(description=tag)),
                lambda: session.execute(update(FileAgent).where(FileAgent.is_open)
                                        .values(visible_content=tag)),
            ])()  # fmt: skip

    async def do_bulk_mappings(self) -> None:
        rows = [{"id": tool, "description": self._word()} for tool in self._some(self.tools)]
        async with db_registry.async_session() as session:
            await session.run_sync(lambda sync: sync.bulk_update_mappings(ToolRow, rows))
