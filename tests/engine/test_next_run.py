"""When a repeating job runs next."""

from __future__ import annotations

import pytest

from worker.engine.cron import next_run_ms

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("due", [0, 3, 100])
@pytest.mark.parametrize("now", [0, 9, 10, 11, 99, 100, 110, 1000])
def test_the_next_run_is_the_first_after_due_and_now(due: int, now: int) -> None:
    following = next_run_ms({"every": 10}, due, now)
    assert following > max(due, now)
    assert following - 10 <= max(due, now)
    assert (following - due) % 10 == 0
