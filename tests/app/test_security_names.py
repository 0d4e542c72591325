"""Every public method refuses an odd name with a named error, before it writes anything."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from arq.worker import func

from cache import InvalidName
from cache.names import MAX_NAME
from tests.support.caches import cache_on
from tests.support.engine import running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from worker import Unique, call
from worker.errors import InvalidArgument
from worker.queue.filters import JobFilter
from worker.webhooks.deliveries import Selection

pytestmark = pytest.mark.integration

ODD: dict[str, Any] = {
    "a lone surrogate": "a\ud800b",
    "nothing but a surrogate": "\udfff",
    "a null": "a\0b",
    "a line break": "a\nb",
    "an escape sequence": "\x1b[2Jb",
    "a delete": "a\x7fb",
    "a control character of Latin-1": "a\x9bb",
    "a line separator": "a\u2028b",
    "too long": "a" * 5000,
    "bytes": b"a",
    "a number": 7,
    "a list": ["a"],
    "an object": object(),
    "nothing": None,
    "empty": "",
}
OPTIONAL = ("nothing",)  # the argument may be left out
VARIANT = ("empty",)  # the empty name is one

Act = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """`act` calls a method with an odd name as one of its arguments."""

    method: str
    argument: str
    act: Act
    fine: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method}-{self.argument}"


async def load() -> Any:
    raise AssertionError("nothing may be loaded for an odd name")


async def other(ctx: dict[str, Any]) -> None:
    """A job that nobody enqueues."""


async def load_of(_wanted: Any) -> Any:
    raise AssertionError("nothing may be loaded for an odd name")


LEASE: Any = None


def _write(method: str) -> list[Case]:
    """Return the cases of a method that names what a write changes."""

    async def call(cache: Any, **names: Any) -> None:
        made = getattr(cache, method)(**names)
        if isinstance(made, Awaitable):
            await made
        else:
            async with made:
                raise AssertionError("no write may begin for an odd name")

    return [
        Case(method, "agents", lambda c, x: call(c, agents=["a", x])),
        Case(method, "dependencies", lambda c, x: call(c, dependencies=["tag:t", x])),
        Case(method, "organisations", lambda c, x: call(c, organisations=[x])),
        Case(method, "conversations", lambda c, x: call(c, conversations=[("a", x)])),
        Case(method, "messages", lambda c, x: call(c, messages=[("o", x)])),
        Case(method, "messages", lambda c, x: call(c, messages=[(x, "m")])),
    ]


MESSAGE = {"id": "m1", "sequence_id": 1}


def _named(kind: str) -> list[Case]:
    """Return the cases of `cache.agents.blocks` or `cache.agents.contexts`."""

    def of(cache: Any) -> Any:
        return getattr(cache.agents, kind)

    path = f"agents.{kind}."
    return [
        Case(path + "get", "agent_id", lambda c, x: of(c).get(x, "n")),
        Case(path + "get", "name", lambda c, x: of(c).get("a", x)),
        Case(path + "get_or_load", "agent_id", lambda c, x: of(c).get_or_load(x, "n", load)),
        Case(path + "get_or_load", "name", lambda c, x: of(c).get_or_load("a", x, load)),
        Case(
            path + "get_or_load", "depends_on",
            lambda c, x: of(c).get_or_load("a", "n", load, depends_on=[x]),
        ),
        Case(path + "set", "agent_id", lambda c, x: of(c).set(x, "n", 1)),
        Case(path + "set", "name", lambda c, x: of(c).set("a", x, 1)),
    ]  # fmt: skip


CACHE = [
    Case("agents.get", "agent_id", lambda c, x: c.agents.get(x)),
    Case("agents.get", "scope", lambda c, x: c.agents.get("a", scope=x), VARIANT),
    Case("agents.get", "organisation", lambda c, x: c.agents.get("a", organisation=x), OPTIONAL),
    Case("agents.get_or_load", "agent_id", lambda c, x: c.agents.get_or_load(x, load)),
    Case(
        "agents.get_or_load", "scope",
        lambda c, x: c.agents.get_or_load("a", load, scope=x), VARIANT,
    ),
    Case(
        "agents.get_or_load", "organisation",
        lambda c, x: c.agents.get_or_load("a", load, organisation=x), OPTIONAL,
    ),
    Case(
        "agents.get_or_load", "depends_on",
        lambda c, x: c.agents.get_or_load("a", load, depends_on=["tag:t", x]),
    ),
    Case("agents.set", "agent_id", lambda c, x: c.agents.set(x, 1)),
    Case("agents.set", "scope", lambda c, x: c.agents.set("a", 1, scope=x), VARIANT),
    Case("agents.set", "organisation", lambda c, x: c.agents.set("a", 1, organisation=x), OPTIONAL),
    Case("agents.set", "depends_on", lambda c, x: c.agents.set("a", 1, depends_on=[x])),
    Case("agents.get_many", "agent_ids", lambda c, x: c.agents.get_many(["a", x])),
    Case("agents.get_many", "scope", lambda c, x: c.agents.get_many(["a"], scope=x), VARIANT),
    Case(
        "agents.get_many", "organisation",
        lambda c, x: c.agents.get_many(["a"], organisation=x), OPTIONAL,
    ),
    Case("agents.get_or_load_many", "agent_ids", lambda c, x: c.agents.get_or_load_many(["a", x], load_of)),
    Case(
        "agents.get_or_load_many", "scope",
        lambda c, x: c.agents.get_or_load_many(["a"], load_of, scope=x), VARIANT,
    ),
    Case(
        "agents.get_or_load_many", "organisation",
        lambda c, x: c.agents.get_or_load_many(["a"], load_of, organisation=x), OPTIONAL,
    ),
    Case(
        "agents.get_or_load_many", "depends_on",
        lambda c, x: c.agents.get_or_load_many(["a"], load_of, depends_on=[x]),
    ),
    Case("agents.lease", "agent_id", lambda c, x: c.agents.lease(x)),
    Case("agents.lease", "scope", lambda c, x: c.agents.lease("a", scope=x), VARIANT),
    Case("agents.lease", "organisation", lambda c, x: c.agents.lease("a", organisation=x), OPTIONAL),
    Case("agents.fill", "agent_id", lambda c, x: c.agents.fill(x, 1, LEASE)),
    Case("agents.fill", "scope", lambda c, x: c.agents.fill("a", 1, LEASE, scope=x), VARIANT),
    Case(
        "agents.fill", "organisation",
        lambda c, x: c.agents.fill("a", 1, LEASE, organisation=x), OPTIONAL,
    ),
    Case("agents.fill", "depends_on", lambda c, x: c.agents.fill("a", 1, LEASE, depends_on=[x])),
    Case("agents.invalidate", "agent_ids", lambda c, x: c.agents.invalidate("a", x)),
    Case(
        "agents.invalidate", "dependencies",
        lambda c, x: c.agents.invalidate(dependencies=["tag:t", x]),
    ),
    Case(
        "agents.invalidate", "organisations", lambda c, x: c.agents.invalidate(organisations=[x])
    ),
    *_write("invalidate"),
    *_write("begin_write"),
    *_write("writing"),
    Case("lease", "name", lambda c, x: c.lease(x)),
    Case(
        "agents.invalidate_dependency", "names",
        lambda c, x: c.agents.invalidate_dependency("tag:t", x),
    ),
    Case("agents.invalidate_tag", "tags", lambda c, x: c.agents.invalidate_tag("t", x)),
    Case(
        "agents.invalidate_organisation", "organisations",
        lambda c, x: c.agents.invalidate_organisation("o", x),
    ),
    Case("agents.warm", "agent_ids", lambda c, x: c.agents.warm(["a", x], load_of)),
    Case("agents.warm", "scope", lambda c, x: c.agents.warm(["a"], load_of, scope=x), VARIANT),
    Case(
        "agents.warm", "organisation",
        lambda c, x: c.agents.warm(["a"], load_of, organisation=x), OPTIONAL,
    ),
    Case("agents.warm", "depends_on", lambda c, x: c.agents.warm(["a"], load_of, depends_on=[x])),
    Case("agents.stats", "agent_id", lambda c, x: c.agents.stats(x)),
    Case("agents.stats", "scope", lambda c, x: c.agents.stats("a", scope=x), VARIANT),
    Case("agents.stats", "organisation", lambda c, x: c.agents.stats("a", organisation=x), OPTIONAL),
    *_named("blocks"),
    *_named("contexts"),
    Case("agents.sessions.get", "agent_id", lambda c, x: c.agents.sessions.get(x, "s")),
    Case("agents.sessions.get", "session_id", lambda c, x: c.agents.sessions.get("a", x)),
    Case("agents.sessions.set", "agent_id", lambda c, x: c.agents.sessions.set(x, "s", 1)),
    Case("agents.sessions.set", "session_id", lambda c, x: c.agents.sessions.set("a", x, 1)),
    Case("agents.sessions.delete", "agent_id", lambda c, x: c.agents.sessions.delete(x, "s")),
    Case("agents.sessions.delete", "session_id", lambda c, x: c.agents.sessions.delete("a", x)),
    Case("messages.list", "agent_id", lambda c, x: c.messages.list(x)),
    Case("messages.list", "conversation", lambda c, x: c.messages.list("a", conversation=x)),
    Case("messages.list", "before", lambda c, x: c.messages.list("a", before=x), ("nothing", "a number")),
    Case("messages.get_or_load", "agent_id", lambda c, x: c.messages.get_or_load(x, load)),
    Case(
        "messages.get_or_load", "conversation",
        lambda c, x: c.messages.get_or_load("a", load, conversation=x),
    ),
    Case("messages.append", "agent_id", lambda c, x: c.messages.append(x, [MESSAGE], after=None)),
    Case(
        "messages.append", "conversation",
        lambda c, x: c.messages.append("a", [MESSAGE], after=None, conversation=x),
    ),
    Case("messages.get_many", "ids", lambda c, x: c.messages.get_many(["m", x], scope="o")),
    Case("messages.get_many", "scope", lambda c, x: c.messages.get_many(["m"], scope=x)),
    Case(
        "messages.get_or_load_many", "ids",
        lambda c, x: c.messages.get_or_load_many(["m", x], load_of, scope="o"),
    ),
    Case(
        "messages.get_or_load_many", "scope",
        lambda c, x: c.messages.get_or_load_many(["m"], load_of, scope=x),
    ),
    Case("messages.lease_many", "ids", lambda c, x: c.messages.lease_many(["m", x], scope="o")),
    Case("messages.lease_many", "scope", lambda c, x: c.messages.lease_many(["m"], scope=x)),
    Case("messages.put_many", "ids", lambda c, x: c.messages.put_many([{"id": x}], scope="o")),
    Case("messages.put_many", "scope", lambda c, x: c.messages.put_many([{"id": "m"}], scope=x)),
    Case("messages.invalidate_ids", "ids", lambda c, x: c.messages.invalidate_ids("m", x, scope="o")),
    Case("messages.invalidate_ids", "scope", lambda c, x: c.messages.invalidate_ids("m", scope=x)),
    Case("messages.invalidate", "agent_id", lambda c, x: c.messages.invalidate(x)),
    Case(
        "messages.invalidate", "conversation",
        lambda c, x: c.messages.invalidate("a", conversation=x), OPTIONAL,
    ),
]  # fmt: skip

URL = "https://example.com/hooks"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CHAT: dict[str, Any] = {"provider": "openai", "endpoint": "chat/completions"}


def send(**given: Any) -> Act:
    """Call `send_webhook` with the odd name in place of the value `...`."""

    def act(queue: Any, odd: Any) -> Any:
        chosen = {name: odd if value is ... else value for name, value in given.items()}
        chosen = {"url": URL, "payload": {}, "event_type": "x", **chosen}
        return queue.send_webhook(chosen.pop("url"), chosen.pop("payload"), **chosen)

    return act


QUEUE = [
    Case("enqueue", "name", lambda q, x: q.enqueue(x)),
    Case("enqueue", "job_id", lambda q, x: q.enqueue("f", job_id=x), OPTIONAL),
    Case("enqueue", "priority", lambda q, x: q.enqueue("f", priority=x)),
    Case("enqueue", "unique", lambda q, x: q.enqueue("f", unique=x), OPTIONAL),
    Case("enqueue", "unique", lambda q, x: q.enqueue("f", unique=Unique(x))),
    Case("enqueue", "then", lambda q, x: q.enqueue("f", then=x), OPTIONAL),
    Case("enqueue", "then's name", lambda q, x: q.enqueue("f", then=call(x))),
    Case("enqueue", "then's job_id", lambda q, x: q.enqueue("f", then=call("f", job_id=x)), OPTIONAL),
    Case(
        "enqueue", "priority",
        lambda q, x: q.enqueue("f", then=replace(call("f"), priority=x)),
    ),
    Case("enqueue", "then's kwargs", lambda q, x: q.enqueue("f", then=replace(call("f"), kwargs=x)), OPTIONAL),
    Case("enqueue_many", "call", lambda q, x: q.enqueue_many([call("f"), x])),
    Case("enqueue_many", "call's name", lambda q, x: q.enqueue_many([call("f"), call(x)])),
    Case(
        "enqueue_many", "call's job_id",
        lambda q, x: q.enqueue_many([call("f"), call("f", job_id=x)]), OPTIONAL,
    ),
    Case(
        "enqueue_many", "priority",
        lambda q, x: q.enqueue_many([call("f"), replace(call("f"), priority=x)]),
    ),
    Case("jobs.gather", "call's name", lambda q, x: q.jobs.gather([call("f"), call(x)], then=call("f"))),
    Case("jobs.gather", "then", lambda q, x: q.jobs.gather([call("f")], then=x)),
    Case("jobs.gather", "then's name", lambda q, x: q.jobs.gather([call("f")], then=call(x))),
    Case(
        "gather", "then's job_id",
        lambda q, x: q.jobs.gather([call("f")], then=call("f", job_id=x)), OPTIONAL,
    ),
    Case("schedule", "schedule_id", lambda q, x: q.schedule(x, call("f"), every_s=9)),
    Case("schedule", "job", lambda q, x: q.schedule("s", x, every_s=9)),
    Case("schedule", "job's name", lambda q, x: q.schedule("s", call(x), every_s=9)),
    Case("schedule", "cron", lambda q, x: q.schedule("s", call("f"), cron=x and f"{x} * * * *" if isinstance(x, str) else x), OPTIONAL),
    Case("jobs.unschedule", "schedule_id", lambda q, x: q.jobs.unschedule(x)),
    Case("jobs.get", "job_id", lambda q, x: q.jobs.get(x)),
    Case("jobs.describe", "job_id", lambda q, x: q.jobs.describe(x)),
    Case("jobs.arguments", "job_id", lambda q, x: q.jobs.arguments(x)),
    Case("jobs.list", "state", lambda q, x: q.jobs.list(x), OPTIONAL),
    Case("jobs.list", "function", lambda q, x: q.jobs.list(function=x), OPTIONAL),
    Case("jobs.list", "priority", lambda q, x: q.jobs.list(priority=x), OPTIONAL),
    Case("jobs.list", "cursor", lambda q, x: q.jobs.list(cursor=x), VARIANT),
    Case("jobs.search", "state", lambda q, x: q.jobs.search(x, JobFilter()), OPTIONAL),
    Case("jobs.search", "cursor", lambda q, x: q.jobs.search(None, JobFilter(), cursor=x), VARIANT),
    Case("jobs.run_now", "job_ids", lambda q, x: q.jobs.run_now("a", x)),
    Case("jobs.request_aborts", "job_ids", lambda q, x: q.jobs.request_aborts(["a", x])),
    Case("jobs.run_schedule", "schedule_id", lambda q, x: q.jobs.run_schedule(x)),
    Case("jobs.switches.off", "name", lambda q, x: q.jobs.switches.off(x)),
    Case("jobs.switches.on", "name", lambda q, x: q.jobs.switches.on(x)),
    Case("send_webhook", "url", send(url=...)),
    Case("send_webhook", "event_type", send(event_type=...)),
    Case("send_webhook", "webhook_id", send(webhook_id=...), OPTIONAL),
    Case("send_webhook", "secret", send(secret=...), OPTIONAL),
    Case("send_webhook", "secrets", send(secrets=...), ("a list",)),
    Case("send_webhook", "bearer", send(bearer=...), ("nothing", "empty")),
    Case("send_webhook", "headers", send(headers=...), OPTIONAL),
    Case("send_webhook", "headers", lambda q, x: send(headers={x if isinstance(x, str) else 7: "v"})(q, None)),
    Case("send_webhook", "headers", lambda q, x: send(headers={"x-a": x})(q, None), ("empty",)),
    Case("send_webhook", "endpoint_id", send(endpoint_id=...), OPTIONAL),
    Case("send_webhook", "ordering_key", send(ordering_key=...), OPTIONAL),
    Case("send_webhook", "on_end", send(on_end=...), ("nothing", "empty")),
    Case("send_webhook", "priority", send(priority=...)),
    Case("delivery", "delivery_id", lambda q, x: q.delivery(x)),
    Case("webhooks.get", "delivery_id", lambda q, x: q.webhooks.get(x)),
    Case("webhooks.ping", "url", lambda q, x: q.webhooks.ping(x)),
    Case("webhooks.find", "event_type", lambda q, x: q.webhooks.find(Selection(event_type=x)), OPTIONAL),
    Case("webhooks.find", "url", lambda q, x: q.webhooks.find(Selection(url=x)), OPTIONAL),
    Case("webhooks.find", "endpoint_id", lambda q, x: q.webhooks.find(Selection(endpoint_id=x)), OPTIONAL),
    Case("webhooks.find", "states", lambda q, x: q.webhooks.find(Selection(states=(x,)))),
    Case("webhooks.replay_many", "endpoint_id", lambda q, x: q.webhooks.replay_many(Selection(endpoint_id=x)), OPTIONAL),
    Case("webhooks.endpoint", "url", lambda q, x: q.webhooks.endpoint(x)),
    Case("webhooks.endpoint", "endpoint_id", lambda q, x: q.webhooks.endpoint(endpoint_id=x if x is not None else "")),
    Case("webhooks.host", "url", lambda q, x: q.webhooks.host(x)),
    Case("webhooks.retry_now", "delivery_id", lambda q, x: q.webhooks.retry_now(x)),
    Case("webhooks.history", "url", lambda q, x: q.webhooks.history(x), OPTIONAL),
    Case("webhooks.history", "endpoint_id", lambda q, x: q.webhooks.history(endpoint_id=x), OPTIONAL),
    Case("llm.history.read", "provider", lambda q, x: q.llm.history.read(provider=x), OPTIONAL),
    Case("llm.history.read", "endpoint", lambda q, x: q.llm.history.read(endpoint=x), OPTIONAL),
    Case("llm.history.read", "model", lambda q, x: q.llm.history.read(model=x), OPTIONAL),
    Case("webhooks.events", "after", lambda q, x: q.webhooks.events(after=x)),
    Case("webhooks.enable", "url", lambda q, x: q.webhooks.enable(x)),
    Case("webhooks.enable", "endpoint_id", lambda q, x: q.webhooks.enable(endpoint_id=x if x is not None else "")),
    Case("webhooks.disable", "url", lambda q, x: q.webhooks.disable(x)),
    Case("webhooks.disable", "endpoint_id", lambda q, x: q.webhooks.disable(endpoint_id=x if x is not None else "")),
    Case("webhooks.replay", "delivery_id", lambda q, x: q.webhooks.replay(x)),
    Case("webhooks.replay", "secrets", lambda q, x: q.webhooks.replay("m", secrets=x), ("a list",)),
    Case("submit_llm_request", "provider", lambda q, x: q.submit_llm_request(BODY, **(CHAT | {"provider": x}))),
    Case("submit_llm_request", "endpoint", lambda q, x: q.submit_llm_request(BODY, **(CHAT | {"endpoint": x}))),
    Case("submit_llm_request", "model", lambda q, x: q.submit_llm_request(BODY | {"model": x}, **CHAT)),
    Case("submit_llm_request", "webhook_url", lambda q, x: q.submit_llm_request(BODY, webhook_url=x, **CHAT), OPTIONAL),
    Case("submit_many", "provider", lambda q, x: q.submit_many([BODY], **(CHAT | {"provider": x}))),
    Case("submit_many", "endpoint", lambda q, x: q.submit_many([BODY], **(CHAT | {"endpoint": x}))),
    Case("submit_many", "model", lambda q, x: q.submit_many([BODY, BODY | {"model": x}], **CHAT)),
    Case("submit_many", "webhook_url", lambda q, x: q.submit_many([BODY], webhook_url=x, **CHAT), OPTIONAL),
    Case("llm_result", "request_id", lambda q, x: q.llm_result(x)),
    Case("llm.cancel", "request_id", lambda q, x: q.llm.cancel(x)),
    Case("llm.came", "request_id", lambda q, x: q.llm.came(x)),
    Case("llm.batches.cancel", "batch_id", lambda q, x: q.llm.batches.cancel(x)),
    Case("llm.batches.cancel_unwanted", "batch_id", lambda q, x: q.llm.batches.cancel_unwanted(x)),
    Case("llm.batches.cancel_group", "provider", lambda q, x: q.llm.batches.cancel_group(x, "chat/completions", "m")),
    Case("llm.batches.cancel_group", "endpoint", lambda q, x: q.llm.batches.cancel_group("openai", x, "m")),
    Case("llm.batches.cancel_group", "model", lambda q, x: q.llm.batches.cancel_group("openai", "chat/completions", x)),
    Case("llm.batches.retry", "batch_id", lambda q, x: q.llm.batches.retry(x)),
    Case("llm.batches.get", "batch_id", lambda q, x: q.llm.batches.get(x)),
    Case("history", "function", lambda q, x: q.history(function=x), OPTIONAL),
    Case("history", "step", lambda q, x: q.history(step=x), OPTIONAL),
    Case("dead.get", "job_id", lambda q, x: q.dead.get(x)),
    Case("dead.retry", "job_id", lambda q, x: q.dead.retry(x), OPTIONAL),
    Case("dead.purge", "job_id", lambda q, x: q.dead.purge(x), OPTIONAL),
    Case("dead.search", "cursor", lambda q, x: q.dead.search(JobFilter(), cursor=x), VARIANT),
    Case("dead.retry_each", "job_ids", lambda q, x: q.dead.retry_each(["a", x])),
    Case("dead.purge_each", "job_ids", lambda q, x: q.dead.purge_each(["a", x])),
]  # fmt: skip


async def _call(act: Act, target: Any, odd: Any) -> Any:
    made = act(target, odd)
    return await made if isinstance(made, Awaitable) else made


async def _keys(client: Any, prefix: str) -> set[bytes]:
    return set(await client.keys(prefix + "*"))


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Any]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.mark.parametrize("case", CACHE, ids=str)
async def test_the_cache_refuses_an_odd_name(
    case: Case, cache: Any, client: Any, prefix: str
) -> None:
    before = await _keys(client, prefix)
    for kind, odd in ODD.items():
        if kind in case.fine:
            continue
        with pytest.raises(InvalidName, match=case.argument.rstrip("s")) as caught:
            await _call(case.act, cache, odd)
        assert isinstance(caught.value, ValueError), kind
    assert await _keys(client, prefix) == before
    stats = cache.stats()
    assert (stats["trusted"], stats["invalidations_missed"], stats["loads"]) == (1, 0, 0)


@pytest.mark.parametrize("case", QUEUE, ids=str)
async def test_the_queue_refuses_an_odd_name(case: Case, client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for kind, odd in ODD.items():
        if kind in case.fine:
            continue
        with pytest.raises(InvalidArgument) as caught:
            await _call(case.act, queue, odd)
        assert case.argument in str(caught.value), (kind, str(caught.value))
        assert "\ud800" not in str(caught.value)
        assert str(caught.value).isprintable()
    await queue.aclose()
    assert await _keys(client, prefix) == set()


# Text that is no name: checked elsewhere, or content.
_NO_NAMES = {
    "payload",
    "body",
    "bodies",
    "value",
    "data",
    "messages",
    "wanted",
    "calls",
    "more",
    "loader",
    "leases",
}


def _arguments(target: Any, path: str) -> set[tuple[str, str]]:
    """Return every text argument of the public methods of an object."""
    found = set()
    for name, method in inspect.getmembers(target, callable):
        if name.startswith("_"):
            continue
        for argument in inspect.signature(method).parameters.values():
            takes_text = "str" in str(argument.annotation) or argument.name == "depends_on"
            if takes_text and argument.name not in _NO_NAMES:
                found.add((f"{path}{name}", argument.name))
    return found


async def test_no_public_argument_is_left_out(cache: Any, client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    public = {
        *_arguments(cache.agents, "agents."),
        *_arguments(cache.agents.blocks, "agents.blocks."),
        *_arguments(cache.agents.contexts, "agents.contexts."),
        *_arguments(cache.agents.sessions, "agents.sessions."),
        *_arguments(cache.messages, "messages."),
        *_arguments(cache, ""),
        *_arguments(queue, ""),
        *_arguments(queue.jobs, "jobs."),
        *_arguments(queue.webhooks, "webhooks."),
        *_arguments(queue.llm, "llm."),
        *_arguments(queue.llm.batches, "llm.batches."),
        *_arguments(queue.dead, "dead."),
    }
    tried = {(case.method, case.argument) for case in CACHE + QUEUE}
    # What a method of the facade calls.
    behind = {
        "enqueue": "jobs.enqueue", "schedule": "jobs.schedule", "send_webhook": "webhooks.send",
        "submit_llm_request": "llm.submit", "submit_many": "llm.submit_many",
        "llm_result": "llm.result",
    }  # fmt: skip
    tried |= {(behind[method], name) for method, name in tried if method in behind}
    # The rescuers look with prefixes of their own.
    assert public - tried == {("dead.names", "prefixes")}


# -- names at the edges of what is fine ---------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "a b", "é", "名前", "a:b", "a@b", "👩\u200d💻", "x" * MAX_NAME, "-", "0"]
)
async def test_the_cache_accepts_any_other_text(cache: Any, name: str) -> None:
    assert await cache.agents.set(name, 1, scope=name, organisation=name, depends_on=[name])
    assert await cache.agents.get(name, scope=name, organisation=name) == 1
    assert await cache.agents.invalidate_dependency(name)
    assert await cache.agents.get(name, scope=name, organisation=name) is None
    assert await cache.agents.sessions.set(name, name, 2)
    assert await cache.agents.sessions.get(name, name) == 2


async def test_an_organisation_and_a_scope_share_no_key(cache: Any) -> None:
    await cache.agents.set("a", "first", organisation="o:1", scope="s")
    await cache.agents.set("a", "second", organisation="o", scope="1:s")
    await cache.agents.set("a", "third", organisation="o%3A1", scope="s")
    assert await cache.agents.get("a", organisation="o:1", scope="s") == "first"
    assert await cache.agents.get("a", organisation="o", scope="1:s") == "second"
    assert await cache.agents.get("a", organisation="o%3A1", scope="s") == "third"


async def test_a_session_cannot_reach_another_agents_session(cache: Any) -> None:
    await cache.agents.sessions.set("a", "b}:session:c", "a's")
    with pytest.raises(InvalidName, match="agent_id"):
        await cache.agents.sessions.get("a}:session:b", "c")


async def test_names_from_a_function_are_checked_on_use(cache: Any) -> None:
    async def value() -> dict[str, Any]:
        return {"tags": ["fine", "a\nb"]}

    def tags(value: dict[str, Any]) -> list[str]:
        return list(value["tags"])

    # The caller has his value; it is not kept, because nothing could invalidate it.
    assert await cache.agents.get_or_load("a", value, depends_on=tags) == await value()
    assert await cache.agents.get("a") is None
    assert cache.stats()["not_encodable"] == 1
    with pytest.raises(InvalidName, match="depends_on"):
        await cache.agents.set("a", await value(), depends_on=tags)
    assert await cache.agents.lease("a") is not None, "the lease was given back"


async def test_a_message_that_cannot_be_kept_drops_its_window(cache: Any) -> None:
    async def committed() -> list[dict[str, Any]]:
        return [MESSAGE]

    await cache.messages.get_or_load("a", committed)
    assert await cache.messages.list("a", limit=1) == [MESSAGE]
    odd = {"id": "m2", "sequence_id": 2, "text": "\ud800"}
    with pytest.raises(ValueError, match="surrogate"):
        await cache.messages.append("a", [odd], after=1)
    assert await cache.messages.list("a", limit=1) is None, "a page without the newest message"


async def test_an_undeliverable_invalidation_clears_everything_once(cache: Any) -> None:
    await cache.agents.set("a", 1)
    # Past the door, as a fault inside would hand it in.
    cache.components.invalidation.miss_window("a", "\ud800")
    await cache.settled()
    assert cache.stats()["invalidations_missed"] == 0
    assert await cache.agents.get("a") is None


# -- the ids of our own jobs ----------------------------------------------------------------

OURS = [
    "webhook:m1", "webhook-replay:t:m1", "webhook-end:0:m1", "webhook-ended:0:m1", "llm:batch:b1",
    "llm:single:r1", "cron:rescue_webhooks:0", "startup:cron:x:0",
]  # fmt: skip


@pytest.mark.parametrize("job_id", OURS)
async def test_a_callers_job_cannot_replace_one_of_ours(
    client: Any, prefix: str, job_id: str
) -> None:
    queue = queue_of(client, prefix)
    for attempt in (
        queue.enqueue("f", job_id=job_id),
        queue.enqueue("f", then=call("f", job_id=job_id)),
        queue.enqueue_many([call("f", job_id=job_id)]),
        queue.jobs.gather([call("f")], then=call("f", job_id=job_id)),
    ):
        with pytest.raises(InvalidArgument, match="reserved prefix"):
            await attempt
    assert await _keys(client, prefix) == set()


async def test_every_job_of_ours_has_an_id_that_callers_cannot_give(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    await queue.send_webhook(URL, {}, event_type="x", webhook_id="m1", on_end="f")
    await queue.submit_llm_request(BODY, urgent=True, **CHAT)
    await queue.submit_llm_request(BODY, **CHAT)
    await queue.schedule("s", call("f"), every_s=0.01)
    ids: set[str] = set()

    async def scheduled() -> bool:
        keys = await client.keys(stores_of(queue).keys.job("*"))
        ids.update(key.decode().removeprefix(stores_of(queue).keys.job("")) for key in keys)
        return any(id_.startswith("s:") for id_ in ids)

    async with running(client, prefix, [func(other, name="other")]):
        await eventually(scheduled, deadline_s=30)
    assert len(ids) >= 4
    for id_ in ids:
        with pytest.raises(InvalidArgument, match="job_id"):
            await queue.enqueue("f", job_id=id_)


async def test_a_job_inside_a_worker_takes_no_place_of_ours(client: Any, prefix: str) -> None:
    from worker.app.arq_client import WorkerRedis

    redis: Any = WorkerRedis(connection_pool=client.connection_pool)
    for odd in ("webhook:m1", "cron:rescue_webhooks:0", "\ud800", "a\nb", ""):
        with pytest.raises(InvalidArgument, match="_job_id"):
            await redis.enqueue_job("f", _job_id=odd, _queue_name=f"{prefix}queue")
    assert await _keys(client, prefix) == set()


@pytest.mark.parametrize("webhook_id", ["m.1", ".", "msg.1764205200", "a.b.c"])
async def test_a_webhook_id_with_a_dot_is_refused(
    client: Any, prefix: str, webhook_id: str
) -> None:
    queue = queue_of(client, prefix)
    with pytest.raises(InvalidArgument, match="webhook_id"):
        await queue.send_webhook(URL, {}, event_type="x", webhook_id=webhook_id)


@pytest.mark.parametrize(
    "body",
    [
        BODY | {"messages": [{"role": "user", "content": "half of an emoji: \ud83d"}]},
        BODY | {"messages": [{"role": "user", "\udc00": "x"}]},
    ],
)
async def test_a_lone_surrogate_in_a_request_is_refused(
    client: Any, prefix: str, body: dict[str, Any]
) -> None:
    queue = queue_of(client, prefix)
    for attempt in (
        queue.submit_llm_request(body, **CHAT),
        queue.submit_llm_request(body, urgent=True, **CHAT),
        queue.submit_many([BODY, body], **CHAT),
    ):
        with pytest.raises(InvalidArgument, match="surrogates"):
            await attempt
    assert await _keys(client, prefix) == set()


async def test_an_emoji_in_a_request_is_accepted(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    body = BODY | {"messages": [{"role": "user", "content": "👩\u200d💻 \\ud800"}]}
    assert await queue.submit_llm_request(body, **CHAT)


async def test_surrogates_in_arguments_and_payloads_are_refused(client: Any, prefix: str) -> None:
    queue, odd = queue_of(client, prefix), "\ud800"
    keywords: dict[str, Any] = {odd: 1}
    for attempt in (
        queue.enqueue("f", odd),
        queue.enqueue("f", {"deep": [{odd: 1}]}),
        queue.enqueue("f", **keywords),
        queue.enqueue("f", then=call("f", odd)),
        queue.enqueue_many([call("f", odd)]),
        queue.jobs.gather([call("f")], then=call("f", odd)),
        queue.schedule("s", call("f", odd), every_s=9),
        queue.send_webhook(URL, {"x": odd}, event_type="x"),
    ):
        with pytest.raises(InvalidArgument):
            await attempt
    assert await _keys(client, prefix) == set()
