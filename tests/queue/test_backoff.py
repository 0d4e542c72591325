"""Exponential backoff with full jitter: the one formula of all retries and restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backoff import ceiling_s, full_jitter_s

pytestmark = pytest.mark.unit

NEVER_1 = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("attempt", "expected"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30)])
def test_the_ceiling_doubles_from_the_base_up_to_the_cap(attempt: int, expected: float) -> None:
    assert ceiling_s(attempt, base_s=0.5, cap_s=30.0) == expected


def test_a_very_large_attempt_number_gives_the_cap() -> None:
    assert ceiling_s(10**9, base_s=0.001, cap_s=86_400.0) == 86_400.0


@given(st.integers(1, 10**6), NEVER_1)
def test_the_delay_is_the_drawn_share_of_the_ceiling(attempt: int, draw: float) -> None:
    delay_s = full_jitter_s(attempt, base_s=2.0, cap_s=600.0, rng=lambda: draw)

    assert delay_s == draw * ceiling_s(attempt, base_s=2.0, cap_s=600.0)
    assert 0 <= delay_s <= 600.0
