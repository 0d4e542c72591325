"""Forged or damaged callbacks cost no other callback its outcome."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from letta_redis.plugin import rows
from letta_redis.plugin.outcomes import Outcomes
from tests.support.queues import queue_of
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration


async def test_odd_callbacks_hold_up_no_other(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    async def write_outcome(owner: str, _delivery: Any, *, unnoted_s: float) -> bool:
        if "bad" in owner:
            raise ValueError("the database refuses this id")
        written.append(owner)
        return True

    monkeypatch.setattr(rows, "write_outcome", write_outcome)
    keys = QueueKeys(prefix)
    monkeypatch.setattr(QueueKeys, "of", lambda _client: keys)
    seen = Outcomes(queue_of(client, prefix), client, is_on=lambda: True, counts=Counter())
    # More than one look takes, all of them due before the real one.
    odd: dict[Any, float] = {f"bad-{number}:completed": number for number in range(60)}
    odd |= {b"\xff\xfe": 0, "run-wrong-type:completed": 0, "": 0, "a\x00b": 0}
    await client.zadd(keys.letta_callbacks, odd)
    await client.set(keys.webhook("run-wrong-type:completed"), "no hash")
    await client.zadd(keys.letta_callbacks, {"run-1:completed": 100})
    for _ in range(3):
        await seen.look()
    assert "run-1" in written
    now_ms = time.time() * 1000
    assert not await client.zcount(keys.letta_callbacks, "-inf", now_ms)
