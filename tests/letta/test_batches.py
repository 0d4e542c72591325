"""Letta's Anthropic batches end, whatever happens to a poll, and one server of the fleet polls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.letta.agents import Agents
from tests.letta.postgres import ROOT
from tests.support.providers import FakeProvider, fake_provider

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]

_BATCHES = "/anthropic/v1/messages/batches"
_LEASE = SimpleNamespace(held=True)


class Died(BaseException):
    """The process ends here."""


class InlinePool:
    """Runs tools in this process. Letta's own pool takes half a minute to import Letta."""

    async def __aenter__(self) -> InlinePool:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def map(self, function: Any, values: Any) -> list[Any]:
        return [await function(value) for value in values]


@pytest.fixture(scope="module")
def provider_process() -> Iterator[FakeProvider]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with fake_provider() as fake:
            yield fake


@pytest.fixture
def provider(
    provider_process: FakeProvider, monkeypatch: pytest.MonkeyPatch, letta: str
) -> FakeProvider:
    from letta.agents import letta_agent_batch

    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider_process.anthropic_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")
    monkeypatch.setattr(letta_agent_batch, "Pool", InlinePool)
    provider_process.reset()
    provider_process.set(polls=0)
    return provider_process


@pytest.fixture
async def server(provider: FakeProvider) -> AsyncIterator[Any]:
    """What a poll uses of Letta's server."""
    from anthropic import AsyncAnthropic
    from letta.services.agent_manager import AgentManager
    from letta.services.block_manager import BlockManager
    from letta.services.job_manager import JobManager
    from letta.services.llm_batch_manager import LLMBatchManager
    from letta.services.message_manager import MessageManager
    from letta.services.passage_manager import PassageManager
    from letta.services.sandbox_config_manager import SandboxConfigManager
    from letta.services.user_manager import UserManager

    async with AsyncAnthropic(max_retries=0) as client:
        yield SimpleNamespace(
            anthropic_async_client=client,
            agent_manager=AgentManager(),
            batch_manager=LLMBatchManager(),
            block_manager=BlockManager(),
            job_manager=JobManager(),
            message_manager=MessageManager(),
            passage_manager=PassageManager(),
            sandbox_config_manager=SandboxConfigManager(),
            user_manager=UserManager(),
        )


@pytest.fixture
async def batches(agents: Agents, server: Any) -> AsyncIterator[Batches]:
    made = Batches(agents, server)
    yield made
    await made.forget()


class Batches:
    """Submits batches as Letta's route does, and polls them."""

    def __init__(self, agents: Agents, server: Any) -> None:
        from letta_redis.plugin.batch_polls import Polls

        self.agents, self.server, self.actor = agents, server, agents.user
        self.polls = Polls(server)
        self.job_id = ""
        self.agent_ids: list[str] = []

    async def submit(self, *texts: str, **fields: Any) -> None:
        """One agent for each text, with these fields."""
        from letta.schemas.enums import JobStatus
        from letta.schemas.job import BatchJob
        from letta.schemas.letta_request import LettaBatchRequest
        from letta.schemas.llm_config import LLMConfig
        from letta.schemas.message import MessageCreate

        from letta_redis.plugin.batch_agents import BatchAgents

        model = LLMConfig(
            model="claude-3-5-haiku-20241022", model_endpoint_type="anthropic",
            model_endpoint="https://api.anthropic.com/v1", context_window=32_000,
            # Otherwise the last message is the beginning of an answer, not the text.
            put_inner_thoughts_in_kwargs=True,
        )  # fmt: skip
        requests = []
        for text in texts:
            agent = await self.agents.create(llm_config=model, **fields)
            self.agent_ids.append(agent.id)
            message = MessageCreate(role="user", content=text)
            requests.append(LettaBatchRequest(agent_id=agent.id, messages=[message]))
        job = BatchJob(user_id=self.actor.id, status=JobStatus.running)
        job = await self.server.job_manager.create_job_async(pydantic_job=job, actor=self.actor)
        self.job_id = job.id
        await BatchAgents.of(self.server, self.actor).step_until_request(requests, job.id)

    async def poll(self) -> None:
        await self.polls.poll(_LEASE)

    async def job(self) -> str:
        job = await self.server.job_manager.get_job_by_id_async(self.job_id, self.actor)
        return str(job.status.value)

    async def rows(self) -> list[Any]:
        found = await self.server.batch_manager.list_llm_batch_jobs_async(self.job_id, self.actor)
        return sorted(found, key=lambda row: row.created_at)

    async def items(self) -> list[str]:
        """The status of each agent's request, in the order of `submit`."""
        found = await self.server.batch_manager.list_llm_batch_items_async(
            (await self.rows())[0].id
        )
        by_agent = {item.agent_id: item.request_status.value for item in found}
        return [by_agent[agent_id] for agent_id in self.agent_ids]

    async def said(self) -> int:
        """How many tool messages the agents have, all in all."""
        found = await self.server.batch_manager.get_messages_for_letta_batch_async(
            self.job_id, self.actor
        )
        return sum(message.role == "tool" for message in found)

    async def forget(self) -> None:
        """So that no other test polls what this one has left."""
        from letta.server.db import db_registry
        from sqlalchemy import text

        async with db_registry.async_session() as session:
            await session.execute(text("DELETE FROM llm_batch_job"))


async def test_a_batch_ends_with_what_its_agents_did(batches: Batches) -> None:
    await batches.submit("please use send_message", "please use send_message")

    await batches.poll()

    assert await batches.job() == "completed"
    assert await batches.items() == ["completed", "completed"]
    assert [row.status.value for row in await batches.rows()] == ["completed"]
    assert await batches.said() == 2


async def test_a_batch_in_progress_is_looked_at_again(
    batches: Batches, provider: FakeProvider
) -> None:
    provider.set(polls=1)
    await batches.submit("please use send_message")

    await batches.poll()
    assert await batches.job() == "running"
    await batches.poll()

    assert await batches.job() == "completed"


async def test_results_that_cannot_be_fetched_are_fetched_again(
    batches: Batches, provider: FakeProvider
) -> None:
    await batches.submit("please use send_message")
    batch = (await batches.rows())[0].create_batch_response.id
    provider.fault("GET", f"{_BATCHES}/{batch}/results", "status", status=529)

    await batches.poll()
    assert (await batches.rows())[0].status.value == "running"
    await batches.poll()

    assert await batches.job() == "completed"
    assert await batches.said() == 1


async def test_a_mixed_batch_ends(batches: Batches) -> None:
    """A failed request, an expired one, one without a tool call, and one without a result."""
    await batches.submit(
        "please use send_message", "please fail", "please expire", "no tool is called",
        "please vanish",
    )  # fmt: skip

    await batches.poll()

    assert await batches.job() == "completed"
    assert await batches.items() == ["completed", "failed", "failed", "failed", "failed"]
    assert await batches.said() == 1


async def test_a_batch_in_which_all_failed_has_failed(batches: Batches) -> None:
    await batches.submit("please fail", "please fail too")

    await batches.poll()

    assert await batches.job() == "failed"
    assert (await batches.rows())[0].status.value == "failed"


async def test_an_agent_that_rethinks_does_not_hide_the_others(batches: Batches) -> None:
    from letta.schemas.tool import Tool
    from letta.services.tool_manager import ToolManager

    arguments = ("new_memory", "target_block_label")
    parameters = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in arguments},
        "required": list(arguments),
    }
    schema = {"name": "rethink_memory", "description": "rethinks", "parameters": parameters}
    source = "def rethink_memory(new_memory: str, target_block_label: str): pass"
    tool = await ToolManager().create_or_update_tool_async(
        Tool(name="rethink_memory", source_code=source, source_type="python", json_schema=schema,
             description="rethinks"),
        batches.actor,
    )  # fmt: skip
    await batches.submit("please use rethink_memory", "please use send_message", tool_ids=[tool.id])

    await batches.poll()

    assert await batches.job() == "completed"
    assert await batches.said() == 2


async def test_partial_results_of_a_canceled_batch_are_kept(
    batches: Batches, server: Any, provider: FakeProvider
) -> None:
    from letta.schemas.enums import JobStatus
    from letta.schemas.job import JobUpdate

    provider.set(polls=5)
    await batches.submit("please use send_message", "please use send_message")
    (row,) = await batches.rows()
    # As Letta's route does.
    await server.job_manager.update_job_by_id_async(
        batches.job_id, JobUpdate(status=JobStatus.cancelled), batches.actor
    )
    await server.anthropic_async_client.messages.batches.cancel(row.create_batch_response.id)
    await server.batch_manager.update_llm_batch_status_async(
        row.id, JobStatus.cancelled, batches.actor
    )

    await batches.poll()

    assert await batches.items() == ["completed", "cancelled"]
    assert (await batches.job(), await batches.said()) == ("cancelled", 0)
    before = provider.calls("GET /anthropic/v1/messages/batches/{id}")
    await batches.poll()
    assert provider.calls("GET /anthropic/v1/messages/batches/{id}") == before


_STEPS = (
    "_collect_resume_context",
    "_update_request_statuses_async",
    "_execute_tools",
    "_persist_tool_messages",
    "_mark_steps_complete_async",
    "_prepare_next_iteration_async",
    "resume_step_after_request",
)


@pytest.mark.parametrize("step", _STEPS)
async def test_a_crash_after_a_step_loses_and_repeats_nothing(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from letta_redis.plugin.batch_agents import BatchAgents

    original = getattr(BatchAgents, step)

    async def dying(self: Any, *args: Any) -> Any:
        await original(self, *args)
        raise Died

    await batches.submit("please use send_message", "please use send_message")
    with monkeypatch.context() as patch:
        patch.setattr(BatchAgents, step, dying)
        with pytest.raises(Died):
            await batches.poll()
    assert (await batches.rows())[0].status.value == "running"

    await batches.poll()

    assert await batches.job() == "completed"
    assert await batches.said() == 2
    for agent_id in batches.agent_ids:
        agent = await batches.agents.manager.get_agent_by_id_async(agent_id, batches.actor)
        assert len(agent.message_ids) == len(set(agent.message_ids))


async def test_a_crash_after_the_next_batch_was_sent_sends_no_other(
    batches: Batches, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letta.schemas.tool_rule import ContinueToolRule

    from letta_redis.plugin.batch_agents import BatchAgents

    original = BatchAgents.step_until_request

    async def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        await original(self, *args, **kwargs)
        raise Died

    goes_on = ContinueToolRule(tool_name="conversation_search")
    await batches.submit("please use conversation_search", tool_rules=[goes_on])
    with monkeypatch.context() as patch:
        patch.setattr(BatchAgents, "step_until_request", dying)
        with pytest.raises(Died):
            await batches.poll()
    assert len(await batches.rows()) == 2

    await batches.poll()

    assert await batches.job() == "completed"
    assert [row.status.value for row in await batches.rows()] == ["completed", "completed"]
    assert provider.calls(f"POST {_BATCHES}") == 2


async def test_agents_that_can_never_go_on_end_their_batch(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letta_redis.plugin import batch_polls
    from letta_redis.plugin.batch_agents import BatchAgents

    async def broken(*_args: Any) -> Any:
        raise LookupError("never")

    monkeypatch.setattr(batch_polls, "MOST_RESUMES", 2)
    monkeypatch.setattr(BatchAgents, "resume_step_after_request", broken)
    await batches.submit("please use send_message")

    await batches.poll()
    assert await batches.job() == "running"
    await batches.poll()

    assert await batches.job() == "failed"


async def test_messages_of_a_batch_are_listed_after_a_cursor(batches: Batches) -> None:
    await batches.submit("please use send_message")
    await batches.poll()
    list_ = batches.server.batch_manager.get_messages_for_letta_batch_async

    every = await list_(batches.job_id, batches.actor)
    after = await list_(batches.job_id, batches.actor, cursor=every[0].id, limit=1)

    assert [message.id for message in after] == [every[1].id]


async def test_one_process_polls_and_another_takes_over(
    batches: Batches, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letta_redis.plugin import batch_polls
    from letta_redis.plugin.batches import follow

    polled: asyncio.Queue[Any] = asyncio.Queue()

    async def poll(self: Any, _lease: Any) -> None:
        polled.put_nowait(self._server)
        await asyncio.Event().wait()

    monkeypatch.setattr(batch_polls.Polls, "poll", poll)
    tasks = {name: asyncio.ensure_future(follow(plugin.runtime, name)) for name in ("one", "two")}
    async with asyncio.timeout(120):
        first = await polled.get()
        assert polled.empty()
        tasks.pop(first).cancel()
        second = await polled.get()
    assert {first, second} == {"one", "two"}
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
