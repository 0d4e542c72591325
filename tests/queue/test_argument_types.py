"""Arguments and results arrive as they were given, or the call is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from arq.jobs import SerializationError
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.encoding import codec
from settings import Settings
from tests.support.engine import burst
from tests.support.queues import queue_of
from tests.support.values import CARRIED, REFUSED, shape, values
from worker.app.service import build_worker_settings
from worker.engine import chain
from worker.engine.options import job
from worker.errors import NotSerializable
from worker.queue.calls import call
from worker.queue.encoder import JobEncoder

ENCODER = JobEncoder(max_bytes=2**20)


def same(found: Any, given_: Any) -> bool:
    return bool(found == given_) and shape(found) == shape(given_)


@pytest.mark.property
@settings(max_examples=50)
@given(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3), values)
def test_a_job_and_the_next_carry_any_values(
    args: list[Any], kwargs: dict[str, Any], result: Any
) -> None:
    options = ENCODER.options(None, call("next", *args))
    fields = codec.decode(ENCODER.encode("first", args, kwargs, options=options))
    assert same(fields["a"], args)
    assert same(fields["k"], kwargs)
    details = chain.following("a", {**fields["o"], "g": {"id": "g", "i": 0}}, result, now_ms=0)
    following = codec.decode(_bytes_of(details["jobs"][0]["body"]))
    assert same(following["a"], [result, *args])
    assert same(codec.decode(_bytes_of(details["gather"]["value"])), result)


def _bytes_of(text: Any) -> bytes:
    return bytes(memoryview(text))[5:]  # after the head of a msgpack str


@pytest.mark.integration
async def test_every_way_of_running_a_job_carries_its_values(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    seen: list[Any] = []

    async def echo(ctx: dict[str, Any], value: Any, *, named: Any = None) -> Any:
        seen.append(value if named is None else named)
        return value

    async def fail(ctx: dict[str, Any], value: Any) -> None:
        raise ValueError

    direct = await queue.enqueue("echo", CARRIED)
    await queue.enqueue("echo", 0, named=CARRIED)
    await queue.enqueue("echo", CARRIED, then=call("echo"))
    after = await queue.jobs.gather([call("echo", CARRIED)], then=call("echo"))
    await queue.enqueue("fail", CARRIED, job_id="dead")
    await queue.schedule("s", call("echo", CARRIED), every_s=3600)
    functions = [job(echo, name="echo"), job(fail, name="fail")]
    await burst(client, prefix, functions)

    assert len(seen) == 6
    assert all(same(value, CARRIED) for value in seen if value != [CARRIED])
    assert same(await direct.result(timeout_s=10), CARRIED)
    assert same(await after.result(timeout_s=10), [CARRIED])
    assert same((await queue.jobs.schedules())[0].job.args, (CARRIED,))
    await queue.dead.retry("dead")
    await burst(client, prefix, [job(echo, name="fail")])
    assert same(seen[-1], CARRIED)


@pytest.mark.integration
async def test_a_jobs_own_enqueue_job_refuses_the_same(valkey_url: str) -> None:
    client: Any = vars(build_worker_settings(Settings(redis_url=valkey_url)))["redis_pool"]
    with pytest.raises(SerializationError) as caught:
        await client.enqueue_job("f", [ValueError("would arrive as another class")])
    await client.aclose(close_connection_pool=True)
    assert "ValueError" in str(caught.value.__cause__)


@pytest.mark.integration
@pytest.mark.parametrize("name", REFUSED)
async def test_an_argument_that_would_change_is_refused(
    client: Any, prefix: str, name: str
) -> None:
    queue = queue_of(client, prefix)
    value, remedy = REFUSED[name]
    calls = {
        rf"^argument 2\['a'\]\[0\] of 'f' .*{remedy}": call("f", 1, {"a": [value]}),
        rf"^argument 'who' of 'f' .*{remedy}": call("f", who=value),
        rf"^argument 1 of 'g' .*{remedy}": call("f", then=call("g", value)),
        rf"^argument 1 of 'h' .*{remedy}": call("f", then=call("g", then=call("h", value))),
    }
    for match, refused in calls.items():
        with pytest.raises(NotSerializable, match=match):
            await queue.enqueue_many([call("f"), refused])
    with pytest.raises(NotSerializable):
        await queue.jobs.gather([call("f")], then=call("g", value))
    with pytest.raises(NotSerializable):
        await queue.schedule("s", call("f", value), every_s=60)
    with pytest.raises(NotSerializable):
        await queue.enqueue("f", ValueError("an exception would arrive as another"))
    assert not await client.keys(f"{prefix}*")
