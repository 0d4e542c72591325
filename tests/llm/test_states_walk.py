"""Tests that batches and requests make exactly the transitions of docs/states.md."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from settings import Settings
from tests.support.diagrams import arrows
from tests.support.llm import ENDPOINT, body, outcome, outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue
from worker.app.composition import build_llm_context
from worker.llm.batches import Batch, BatchStore
from worker.llm.jobs import flush_llm_batches
from worker.llm.states import BatchState

pytestmark = pytest.mark.integration

Arrow = tuple[str, str]
PAGE = (Path(__file__).parents[2] / "docs" / "states.md").read_text()
REQUEST_STATES = ("waiting", "in a batch", "direct call", "answered", "failed")
BATCH_STATES = tuple(state.value for state in BatchState)


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def drawn(title: str, states: tuple[str, ...]) -> set[Arrow]:
    return arrows(section(title).split("```")[1], states)


def listed(title: str, states: tuple[str, ...]) -> set[Arrow]:
    """The table's rows: each `from` with each `to`."""
    rows = re.findall(r"^\| ([a-z, ()]+) \| ([a-z, ()]+) \|", section(title), re.MULTILINE)
    return {
        (source, target)
        for sources, targets in rows
        if sources != "from"
        for source in sources.split(", ")
        for target in targets.removesuffix(" (another)").split(", ")
        if source in states and target in states
    }


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> set[Arrow]:
    """All transitions of a batch that the script made."""
    seen: set[Arrow] = set()
    move = BatchStore.move

    async def watched(store: BatchStore, batch: Batch, to: BatchState, **more: Any) -> int:
        moved = await move(store, batch, to, **more)
        if moved == 1:
            seen.add((batch.state.value, to.value))
        return moved

    monkeypatch.setattr(BatchStore, "move", watched)
    monkeypatch.setattr("worker.llm.direct._OUTAGE_BASE_S", 0.02)
    monkeypatch.setattr("worker.llm.reading._ABSENT_S", 0.3)
    monkeypatch.setattr("worker.llm.batches._UNSEALED_MS", 10)
    return seen


async def ended(queue: JobQueue) -> bool:
    shown = await queue.llm.batches.list()
    return bool(shown) and all(row["state"] in {"done", "failed"} for row in shown)


async def in_state(queue: JobQueue, state: str) -> str | None:
    return next(
        (row["id"] for row in await queue.llm.batches.list() if row["state"] == state), None
    )


class Way:
    """One scenario: a provider's behavior and the caller's actions."""

    def __init__(
        self,
        *through: str,
        provider: str = "openai",
        fault: dict[str, Any] | None = None,
        another_fault: dict[str, Any] | None = None,
        fake: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        cancel_in: str = "",
        texts: tuple[str, ...] = ("a", "b"),
    ) -> None:
        self.arrows = set(pairwise(through))
        self.provider = provider
        self.faults = [dict(each) for each in (fault, another_fault) if each is not None]
        self.fake = fake or {}
        self.settings = settings or {}
        self.cancel_in = cancel_in
        self.texts = texts


def on(method: str, path: str, action: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "path": path, "action": action, **more}


SENT = ("sealed", "uploading", "uploaded", "submitting")
AWAY = {"status": 503, "times": 1000}
NEVER = {"polls": 1_000_000}
WAYS = {
    "answered": Way(*SENT, "submitted", "fetching", "done"),
    "no file": Way("sealed", "uploaded", "submitting", provider="anthropic"),
    "busy": Way("submitting", "uploaded", fault=on("POST", "/v1/batches", "status", status=429)),
    "found": Way("submitting", "unconfirmed", "submitted", fault=on("POST", "/v1/batches", "drop")),
    "absent": Way("submitting", "unconfirmed", "uploaded", fault=on("POST", "/v1/batches", "lose")),
    "may fail": Way(
        "unconfirmed",
        "failed",
        fault=on("POST", "/v1/batches", "lose"),
        settings={"llm_on_ambiguous": "fail"},
    ),
    "refused at validation": Way("fetching", "failed", texts=("please poison",)),
    "refused at creation": Way(
        "submitting", "failed", fake={"poison_at": "create"}, texts=("please poison",)
    ),
    "refused at upload": Way(
        "uploading", "failed", fake={"poison_at": "upload"}, texts=("please poison",)
    ),
    "no batches": Way("uploading", "done", fault=on("POST", "/v1/files", "status", status=404)),
    "only files": Way(
        "submitting",
        "done",
        fault=on("POST", "/v1/batches", "status", status=404),
        another_fault=on("GET", "/v1/batches", "status", status=404),
    ),
    "no room": Way("fetching", "uploaded", fake={"no_room": 1}),
    "unknown": Way("submitted", "failed", fake={"not_found": 1_000_000}),
    "canceled": Way("submitted", "canceling", "fetching", fake=NEVER, cancel_in="submitted"),
    "canceled while uploaded": Way(
        "uploading",
        "done",
        fault=on("POST", "/v1/files", "status", **AWAY),
        cancel_in="uploading",
    ),
    "canceled while refused": Way(
        "uploaded",
        "done",
        fault=on("POST", "/v1/batches", "status", status=429, times=1000),
        cancel_in="uploaded",
        texts=("a",),
    ),
}


async def walk(way: Way, fake: FakeProvider, settings: Settings) -> None:
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, way.provider, *way.texts)
        if way.cancel_in:
            batch_id = await eventually(lambda: in_state(queue, way.cancel_in))
            for id_ in ids:
                await queue.llm.cancel(id_)
            await queue.llm.batches.cancel(batch_id)
        await outcomes(queue, ids)
        await eventually(lambda: ended(queue))
        await stores_of(queue).client.flushdb()


async def test_batches_make_exactly_the_documented_transitions(
    private_valkey_url: str, fake: FakeProvider, walked: set[Arrow]
) -> None:
    for name, way in WAYS.items():
        fake.reset()
        fake.set(**{"polls": 0, **way.fake})
        for fault in way.faults:
            fake.fault(fault.pop("method"), fault.pop("path"), fault.pop("action"), **fault)
        before = set(walked)
        walked.clear()
        await walk(way, fake, settings_for(private_valkey_url, fake, **way.settings))
        assert way.arrows <= walked, name
        walked |= before
    for other in (
        another_s,
        forgotten_while_canceled,
        unwanted_when_sealed,
        left_open,
        left_while_it_waited,
    ):
        fake.reset()
        await other(private_valkey_url, fake)
    assert walked == listed("An LLM batch", BATCH_STATES)
    assert drawn("An LLM batch", BATCH_STATES) <= walked


async def another_s(url: str, fake: FakeProvider) -> None:
    """A foreign batch of the same size is adopted and released again."""
    import anthropic

    fake.set(polls=0)
    with anthropic.Anthropic(base_url=fake.anthropic_url, api_key="k") as claude:
        row: Any = {"custom_id": "foreign", "params": body("anthropic", "not yours")}
        claude.messages.batches.create(requests=[row])
    fake.fault("POST", "/anthropic/v1/messages/batches", "drop")
    await walk(Way(provider="anthropic", texts=("mine",)), fake, settings_for(url, fake))


async def forgotten_while_canceled(url: str, fake: FakeProvider) -> None:
    fake.set(**NEVER)
    settings = settings_for(url, fake)
    async with open_queue(settings) as queue:
        async with running_worker(settings):
            (id_,) = await submit(queue, "openai", "a")
            batch_id = await eventually(lambda: in_state(queue, "submitted"))
        # Only a run may change the state, so no run is under way.
        fake.fault("GET", "/v1/batches/batch", "status", status=404, times=1000)
        fake.fault("POST", "/v1/batches/batch", "status", status=404, times=1000)
        await stores_of(queue).batches.note(batch_id, state="canceling")
        async with running_worker(settings):
            assert await outcome(queue, id_) == "error batch_refused"
            await eventually(lambda: ended(queue))
        await stores_of(queue).client.flushdb()


async def unwanted_when_sealed(url: str, fake: FakeProvider) -> None:
    settings = settings_for(url, fake)
    async with open_queue(settings) as queue:
        (id_,) = await submit(queue, "openai", "a")
        batch_id = await split_off(queue, id_, seal=True)
        assert await queue.llm.cancel(id_)
        await stores_of(queue).client.hset(stores_of(queue).keys.llm_batch(batch_id), "cancel", 1)
        async with running_worker(settings):
            await eventually(lambda: ended(queue))
        await stores_of(queue).client.flushdb()


async def left_open(url: str, fake: FakeProvider) -> None:
    """A flush dies half way and leaves the batch open; the batch's job seals it."""
    fake.set(polls=0)
    settings = settings_for(url, fake)
    async with open_queue(settings) as queue:
        (id_,) = await submit(queue, "openai", "a")
        await split_off(queue, id_, seal=False)
        async with running_worker(settings):
            assert await outcome(queue, id_) == "echo: a"
            await eventually(lambda: ended(queue))
        await stores_of(queue).client.flushdb()


async def left_while_it_waited(url: str, fake: FakeProvider) -> None:
    """A request is canceled while its batch waits for room."""
    fake.set(polls=0, no_room=1_000_000)
    settings = settings_for(url, fake)

    async def waits(queue: JobQueue) -> bool:
        return any(row["error"] for row in await queue.llm.batches.list())

    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        await eventually(lambda: waits(queue))
        assert await queue.llm.cancel(ids[0])
        fake.set(no_room=0)
        assert await outcome(queue, ids[1]) == "echo: b"
        await eventually(lambda: ended(queue))
        await stores_of(queue).client.flushdb()


async def split_off(queue: JobQueue, request_id: str, *, seal: bool) -> str:
    """Make a batch of one request by hand."""
    old = Batch(
        "old", BatchState.FETCHING, 1, (await stores_of(queue).batches.groups())[0], 1, None
    )
    await stores_of(queue).client.hset(
        stores_of(queue).keys.llm_request(request_id), "batch", "old"
    )
    row = {
        "group": await stores_of(queue).client.hget(
            stores_of(queue).keys.llm_request(request_id), "group"
        )
    }
    row["gid"] = await stores_of(queue).client.hget(
        stores_of(queue).keys.llm_request(request_id), "gid"
    )
    await stores_of(queue).client.hset(stores_of(queue).keys.llm_batch("old"), mapping=row)
    await stores_of(queue).client.delete(
        stores_of(queue).keys.llm_pending(old.group.id), stores_of(queue).keys.llm_groups
    )
    job = stores_of(queue).prepared.batch("new")
    assert await stores_of(queue).batches.split(old, "new", [request_id], seal=seal, job=job)
    return "new"


# -- requests ------------------------------------------------------------------


async def place(queue: JobQueue, request_id: str) -> str:
    """The state of a request, from its stored fields and the lists that contain it."""
    keys = stores_of(queue).keys
    fields: list[bytes | None] = []
    while True:
        before, fields = (
            fields,
            await stores_of(queue).client.hmget(
                keys.llm_request(request_id), "gid", "batch", "single"
            ),
        )
        group, batch, single = fields
        if group is None:
            failed = await stores_of(queue).client.exists(keys.llm_failed(request_id))
            return "failed" if failed else "answered"
        if batch is not None:
            where = "in a batch"
            listed = await stores_of(queue).client.sismember(
                keys.llm_open(batch.decode()), request_id
            )
        elif single is not None:
            where = "direct call"
            listed = await stores_of(queue).client.zscore(keys.llm_single, request_id) is not None
        else:
            where = "waiting"
            lpos = await stores_of(queue).client.lpos(keys.llm_pending(group.decode()), request_id)
            listed = lpos is not None
        if listed:
            return where
        # It may have moved between two reads; the same result twice is a contradiction.
        assert fields != before, (where, fields)


async def test_requests_make_exactly_the_documented_transitions(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_batch_max_age_s=3600)
    seen: set[Arrow] = set()
    async with open_queue(settings) as queue:

        async def step(id_: str, act: Callable[[], Awaitable[Any]], to: str) -> None:
            before = await place(queue, id_)
            await act()
            assert await eventually(lambda: is_in(queue, id_, to)), (before, to)
            seen.add((before, to))

        async def work(until: Callable[[], Awaitable[Any]]) -> None:
            async with running_worker(settings):
                await queue.flush_llm_batches()
                await eventually(until)

        async def go_to(id_: str, to: str) -> None:
            await step(id_, lambda: work(lambda: is_in(queue, id_, to)), to)

        for text, end in (("a", "answered"), ("please fail", "failed")):
            fake.set(polls=1_000_000)
            (id_,) = await submit(queue, "openai", text)
            await step(id_, lambda: work(lambda: in_state(queue, "submitted")), "in a batch")
            fake.set(polls=0)
            await go_to(id_, end)
            urgent = await queue.submit_llm_request(
                body("openai", text), provider="openai", endpoint=ENDPOINT["openai"], urgent=True
            )
            await go_to(urgent, end)
        shown = (await queue.llm.batches.list())[0]
        await step(id_, lambda: queue.llm.batches.retry(shown["id"]), "waiting")
        await step(id_, lambda: queue.llm.cancel(id_), "failed")
        (back,) = await submit(queue, "openai", "please expire")
        fake.set(polls=1_000_000)
        await step(back, lambda: work(lambda: in_state(queue, "submitted")), "in a batch")
        fake.set(polls=0)
        await go_to(back, "waiting")
        fake.fault("POST", "/v1/files", "status", status=404)
        fake.fault("POST", "/v1/chat/completions", "status", status=503, times=1000)
        fake.fault("POST", "/v1/batches", "status", status=429, times=1000)
        await step(back, lambda: seal(queue, settings), "in a batch")
        await go_to(back, "direct call")
    assert seen == drawn("An LLM request", REQUEST_STATES)
    assert seen <= listed("An LLM request", REQUEST_STATES)


async def is_in(queue: JobQueue, request_id: str, where: str) -> bool:
    return await place(queue, request_id) == where


async def seal(queue: JobQueue, settings: Settings) -> None:
    """Flush without a worker."""
    ctx: dict[Any, Any] = {}
    build_llm_context(settings, stores_of(queue)).put_into(ctx)
    assert await flush_llm_batches(ctx) == 1
