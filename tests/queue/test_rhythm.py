"""How often a repeating job may run, and when it runs next."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import InvalidArgument
from worker.queue.rhythm import next_run_ms, require_rhythm

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("due", [0, 3, 100])
@pytest.mark.parametrize("now", [0, 9, 10, 11, 99, 100, 110, 1000])
def test_the_next_run_is_the_first_after_due_and_now(due: int, now: int) -> None:
    following = next_run_ms({"every": 10}, due, now)
    assert following > max(due, now)
    assert following - 10 <= max(due, now)
    assert (following - due) % 10 == 0


@pytest.mark.parametrize(
    "expression",
    [
        *("61 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "-1 * * * *"),
        *("0 0 30 2 *", "0 0 31 4,6 *", "0 0 * 2 1#6", "60 * * * * *", "* * * * * * *"),
        *("every five minutes of day", "@daily", "*/0 * * * *", "5-1 * * * *", "a b c d e"),
        *("1,,2 * * * *", "² * * * *", "1.5 * * * *", "* * * * SOMEDAY", "", "\ud800 * * * *"),
    ],
)
async def test_an_expression_that_is_never_due_is_refused_by_its_name(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="cron"):
        require_rhythm(None, expression)


@pytest.mark.parametrize(
    "every_s", [0, -1, 0.001, math.nan, math.inf, 10**400, "5", True, [1], 367 * 86_400]
)
async def test_an_interval_that_cannot_be_kept_is_refused(every_s: Any) -> None:
    with pytest.raises(InvalidArgument, match="every_s"):
        require_rhythm(every_s, None)


def test_a_rare_expression_is_accepted() -> None:
    require_rhythm(None, "0 0 29 2 *")
    require_rhythm(None, "0 12 * 2 MON#5")
    require_rhythm(None, "59 59 23 LW DEC 7L")


EXPRESSIONS = st.one_of(
    st.text(max_size=30),
    st.text("0123456789*/-,#LWMON ", max_size=30),
    st.lists(
        st.sampled_from(
            ["*", "0", "30", "59", "*/7", "1-5", "0,31", "L", "LW", "2#5", "FRI", "60", "7L", "*/0"]
        ),
        min_size=5,
        max_size=6,
    ).map(" ".join),
)


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
)
@given(expression=EXPRESSIONS, now=st.integers(0, 2_500_000_000_000))
def test_an_accepted_expression_is_due_after_now(expression: str, now: int) -> None:
    try:
        require_rhythm(None, expression)
    except InvalidArgument:
        return
    run = next_run_ms({"cron": expression}, 0, now)
    assert run > now
    assert run % 1000 == 0
