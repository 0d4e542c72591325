"""A job that is named by its function has the type of its result. `make check` checks the types."""

from __future__ import annotations

from typing import Any, assert_type

import pytest

from tests.support.engine import burst
from tests.support.queues import queue_of
from worker import Call, InvalidArgument, Job, call

pytestmark = pytest.mark.integration


async def double(ctx: dict[str, Any], n: int) -> int:
    return 2 * n


async def shout(ctx: dict[str, Any], text: str) -> str:
    return text.upper()


async def total(ctx: dict[str, Any], numbers: list[int], start: int = 0) -> int:
    return sum(numbers, start)


async def test_a_result_has_the_type_that_the_function_returns(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    doubled = await queue.enqueue(double, 21)
    many = await queue.enqueue_many([call(shout, "a"), call(shout, "b")])
    gathered = await queue.jobs.gather([call(double, 1)], then=call(total, start=1))
    await queue.schedule("s", call(double, 1), every_s=3600)
    by_text = await queue.enqueue("double", 1)
    await burst(client, prefix, [double, shout, total])

    assert_type(doubled, Job[int])
    assert assert_type(await doubled.result(timeout_s=10), int) == 42
    assert_type(many, list[Job[str]])
    assert [await job.result(timeout_s=10) for job in many] == ["A", "B"]
    assert assert_type(await gathered.result(timeout_s=10), int) == 3
    assert_type(by_text, Job)
    assert assert_type(await by_text.result(timeout_s=10), Any) == 2
    assert_type(call(shout, "a"), Call[str])
    assert (await queue.jobs.schedules())[0].job.name == "double"


async def test_what_is_neither_a_name_nor_a_function_is_refused(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    wrong: list[Any] = [None, 5, b"double", print, lambda ctx: ctx, [double]]
    for name in wrong:
        with pytest.raises(InvalidArgument, match="name is not a job"):
            await queue.enqueue(name)
        with pytest.raises(InvalidArgument, match="name is not a job"):
            await queue.enqueue_many([call(name)])
    assert not await client.keys(f"{prefix}*")
