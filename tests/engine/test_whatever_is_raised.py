"""Whatever a job raises or returns ends its try, counted, with any serializer."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pytest
from arq.jobs import deserialize_result
from arq.worker import func
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.encoding import codec
from cache.logs import Logger
from tests.support.engine import burst
from tests.support.queues import queue_of
from tests.support.raising import ASK_AGAIN, RAISED, RETURNED, SURROGATE, Odd
from worker.engine import RetryPolicy, job
from worker.engine.execute import Executor
from worker.engine.failures import SafeLog
from worker.engine.options import EngineOptions
from worker.engine.records import Claim, End, encode_ends
from worker.engine.settings import RunSettings
from worker.errors import JobFailed
from worker.logs import configure_logging
from worker.queue.policy import Again

# `make soak` runs more examples.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
QUICK_RETRY = RetryPolicy(max_tries=2, base_s=0.001)
SentEnd = tuple[str, str, str, int, dict[str, msgspec.Raw]]

# Our clients encode the bodies, so the engine decodes them with our codec throughout.
SERIALIZERS: dict[str, Callable[[Any], Any]] = {
    "ours": codec.encode,
    "msgpack": msgspec.msgpack.encode,  # as in arq's own documentation: it refuses exceptions
    "pickle": pickle.dumps,
    "json": json.dumps,  # returns text
}


@pytest.fixture(autouse=True)
def logs(own_logging: None) -> None:
    """Log as workers do: formatting what was raised is part of the test."""
    configure_logging("INFO", "json")


@pytest.mark.integration
@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_whatever_a_job_raises_is_one_counted_try(
    client: Any, prefix: str, serializer: str
) -> None:
    runs: Counter[str] = Counter()

    async def odd(ctx: dict[str, Any], kind: str) -> None:
        runs[ctx["job_id"]] += 1
        raise RAISED[kind]()

    queue = queue_of(client, prefix)
    for number, kind in enumerate(RAISED):
        await queue.enqueue("once", kind, job_id=f"once-{number}")
        await queue.enqueue("twice", kind, job_id=f"twice-{number}")
    functions = [func(odd, name="once", max_tries=2), job(odd, name="twice", retry=QUICK_RETRY)]
    worker = await burst(
        client,
        prefix,
        functions,
        # A lease that a busy machine does not lose: a second owner would run a job again.
        options=EngineOptions(lease_s=30),
        job_serializer=SERIALIZERS[serializer],
        job_deserializer=codec.decode,
    )
    letters = {letter.id: letter for letter in await queue.dead.list()}
    assert len(letters) == worker.jobs_failed == 2 * len(RAISED)
    assert {id_: letter.tries for id_, letter in letters.items()} == dict(runs)
    for number, kind in enumerate(RAISED):
        assert runs[f"once-{number}"] == (2 if kind in ASK_AGAIN else 1), kind
        assert runs[f"twice-{number}"] <= 2, kind
    assert await client.zcard(f"{prefix}queue") == 0


@pytest.mark.integration
async def test_a_failure_is_read_by_its_class_and_text(client: Any, prefix: str) -> None:
    async def odd(ctx: dict[str, Any], kind: str) -> None:
        raise RAISED[kind]()

    queue = queue_of(client, prefix)
    expected = {
        "exit": ("SystemExit", "1"),
        "interrupt": ("KeyboardInterrupt", ""),
        "generator exit": ("GeneratorExit", ""),
        "surrogate": ("RuntimeError", r"cannot read caf\udce9.txt"),
        "base": ("Plainly", r"caf\udce9.txt"),
        "text of its own": ("TextOfItsOwn", "text of its own"),
        "__str__ exits": ("Odd", "<its text cannot be read>"),
        "no name": ("Exception", ""),
        "long": ("RuntimeError", "x" * 65_536),
    }
    jobs = {kind: await queue.enqueue("odd", kind) for kind in expected}
    await burst(client, prefix, [func(odd, name="odd")])
    for kind, handle in jobs.items():
        with pytest.raises(JobFailed) as failed:
            await handle.result(timeout_s=10)
        assert (failed.value.kind, failed.value.message) == expected[kind]


@pytest.mark.integration
@pytest.mark.parametrize("serializer", SERIALIZERS)
async def test_a_result_that_cannot_be_encoded_ends_the_job(
    client: Any, prefix: str, serializer: str
) -> None:
    async def odd(ctx: dict[str, Any], kind: str) -> Any:
        return RETURNED[kind]()

    queue = queue_of(client, prefix)
    for number, kind in enumerate(RETURNED):
        await queue.enqueue("odd", kind, job_id=f"odd-{number}")
    worker = await burst(
        client,
        prefix,
        [func(odd, name="odd")],
        job_serializer=SERIALIZERS[serializer],
        job_deserializer=codec.decode,
    )
    assert worker.jobs_complete == len(RETURNED)
    assert await client.zcard(f"{prefix}queue") == 0
    data = await client.get(f"{prefix}result:odd-1")
    load = {"ours": codec.decode, "pickle": pickle.loads, "json": json.loads}
    kept = deserialize_result(data, deserializer=load.get(serializer, msgspec.msgpack.decode))
    assert not kept.success
    assert "unable to serialize result" in str(kept.result)


@pytest.mark.integration
async def test_arguments_that_a_job_spoiled_do_not_cost_its_result(
    client: Any, prefix: str
) -> None:
    async def spoil(ctx: dict[str, Any], items: list[Any]) -> str:
        items.append(object())
        return "done"

    spoiled = await queue_of(client, prefix).enqueue("spoil", [1])
    await burst(client, prefix, [func(spoil, name="spoil")])
    assert await spoiled.result(timeout_s=10) == "done"


@pytest.mark.integration
@pytest.mark.parametrize("hook", ["on_job_start", "on_job_end", "after_job_end", "observer"])
async def test_a_hook_that_exits_costs_no_neighbor(client: Any, prefix: str, hook: str) -> None:
    async def leave(ctx: dict[str, Any]) -> None:
        raise SystemExit(1)

    class Leaves:
        def job_ended(self, **_fields: Any) -> None:
            raise SystemExit(1)

    async def fine(ctx: dict[str, Any]) -> None: ...

    queue = queue_of(client, prefix)
    for _ in range(3):
        await queue.enqueue("fine")
    given_hook: Any = Leaves() if hook == "observer" else leave
    worker = await burst(client, prefix, [func(fine, name="fine")], **{hook: given_hook})
    assert worker.jobs_failed == (3 if hook == "on_job_start" else 0)
    assert worker.jobs_done == 3


@dataclass(frozen=True, slots=True)
class Always(RetryPolicy):
    """Answers every failure with the same decision."""

    answer: Any = None

    def decide(self, *_args: Any, **_kwargs: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.unit
@pytest.mark.parametrize(
    "answer",
    [Again(math.nan), Again("soon"), Again(None), None, SystemExit(1)],  # type: ignore[arg-type]
    ids=repr,
)
async def test_a_policy_with_an_odd_answer_ends_the_try(answer: Any) -> None:
    assert await _run(ValueError("no"), retry=Always(answer=answer)) == ("dead", "failed")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("delay_s", "ms"), [(math.inf, 366 * 86_400_000), (-1, 0), (10**400, 366 * 86_400_000)]
)
async def test_a_delay_out_of_range_is_bounded(delay_s: Any, ms: int) -> None:
    assert await _run(ValueError("no"), retry=Always(answer=Again(delay_s))) == ("retry", ms)


@pytest.mark.unit
def test_an_event_that_cannot_be_logged_is_dropped() -> None:
    told: list[dict[str, Any]] = []

    class Bound:
        def error(self, _event: str, **fields: Any) -> None:
            if "exception" in fields:
                raise RecursionError
            told.append(fields)

        def info(self, _event: str, **_fields: Any) -> None:
            raise SystemExit(1)

    log = SafeLog(Logger("a", Bound()))
    log.info("a.b")
    log.error("a.b", exc_info=ValueError(), job_id="a")
    assert told == [{"job_id": "a"}]


# -- any exception ---------------------------------------------------------------------

# The examples are recipes: an exception whose `__repr__` raises cannot be reported.
Build = Callable[[], BaseException]

TEXTS = st.text(max_size=20) | st.just(SURROGATE)
BROKEN = st.sampled_from([ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
CLASSES = BROKEN | st.sampled_from(
    [Exception, OSError, KeyError, BaseException, asyncio.CancelledError, StopAsyncIteration]
)
VALUES = TEXTS | st.binary(max_size=8) | st.integers() | st.floats() | st.none() | st.builds(object)
SINGLE: st.SearchStrategy[Build] = (
    st.builds(lambda kind, args: partial(kind, *args), CLASSES, st.lists(VALUES, max_size=3))
    | st.builds(lambda kind: partial(_odd, kind), BROKEN)
    | st.builds(lambda name: partial(_by_name, name), st.sampled_from(list(RAISED)))
)


def _grouped(inner: st.SearchStrategy[Build]) -> st.SearchStrategy[Build]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.builds(lambda text, parts: partial(_group, text, parts), TEXTS, several) | (
        st.builds(lambda exc, cause, note: partial(_linked, exc, cause, note), inner, inner, TEXTS)
    )


def _by_name(name: str) -> BaseException:
    return RAISED[name]()


def _odd(kind: type[BaseException]) -> BaseException:
    return Odd(kind())


def _group(text: str, parts: list[Build]) -> BaseException:
    return BaseExceptionGroup(text, [part() for part in parts])


def _linked(build: Build, cause: Build, note: str) -> BaseException:
    exc = build()
    exc.__cause__ = cause()
    exc.add_note(note)
    return exc


@pytest.mark.unit
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    build=st.recursive(SINGLE, _grouped, max_leaves=6),
    serializer=st.sampled_from(list(SERIALIZERS)),
    retry=st.sampled_from([None, QUICK_RETRY]),
    tries=st.integers(0, 3),
)
def test_any_exception_becomes_one_end_that_can_be_sent(
    build: Build, serializer: str, retry: RetryPolicy | None, tries: int
) -> None:
    chosen = SERIALIZERS[serializer]
    ended = asyncio.run(_end_of(build(), serializer=chosen, retry=retry, tries=tries))
    (sent,) = msgspec.msgpack.decode(encode_ends([ended]), type=list[SentEnd])
    assert sent[0] in ("retry", "dead")
    assert msgspec.msgpack.decode(sent[4]["tries"]) == tries + 1


async def _run(exc: BaseException, *, retry: RetryPolicy) -> tuple[str, Any]:
    kind, *_, details = await _end_of(exc, serializer=codec.encode, retry=retry, tries=0)
    return kind, details["delay" if kind == "retry" else "reason"]


async def _end_of(
    exc: BaseException, *, serializer: Any, retry: RetryPolicy | None, tries: int
) -> End:
    """Run a job that raises `exc` as the engine does. Return its one end."""

    async def fail(ctx: dict[str, Any]) -> None:
        raise exc

    ends: list[End] = []
    executor = Executor(
        _settings(fail, serializer, retry),
        now_ms=lambda: 1_000_000,
        collect=lambda _claim, end, _outcome: ends.append(end),
        note=lambda *_: None,
        vacate=lambda _: None,
    )
    claim = _claim(tries)
    claim.task = asyncio.current_task()
    await executor.run(claim)
    (end,) = ends
    return end


def _claim(tries: int) -> Claim:
    body = codec.encode({"t": None, "f": "fail", "a": [], "k": {}, "et": 1})
    return Claim(b"a", body, tries, b"token", 3, "7", 0, None, "a")


def _settings(coroutine: Any, serializer: Any, retry: RetryPolicy | None) -> RunSettings:
    return RunSettings(
        functions={"fail": job(coroutine, name="fail", retry=retry, max_tries=9)},
        ctx={},
        options=EngineOptions(),
        worker_id="w",
        queue_names=["c", "h", "d", "l"],
        unique_prefix="u",
        serializer=serializer,
        deserializer=codec.decode,
        job_timeout_s=300,
        keep_result_s=60,
        keep_result_forever=False,
        max_tries=5,
        retry_jobs=True,
        allow_abort_jobs=False,
        park_s=900,
    )
