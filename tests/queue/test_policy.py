"""Decisions of the retry policy, without a server and without time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import Permanent
from worker.queue.policy import Again, Dead, RetryPolicy

pytestmark = pytest.mark.unit

POLICY = RetryPolicy(max_tries=5, base_s=2, cap_s=10, max_age_s=100, permanent=(KeyError,))


def top() -> float:
    """Return the highest draw, so that a delay equals its ceiling."""
    return 1.0


def decide(error: BaseException, tries: int, age_s: float = 0, **more: int) -> Again | Dead:
    return POLICY.decide(error, tries=tries, age_s=age_s, rng=top, **more)


@pytest.mark.parametrize(("tries", "ceiling_s"), [(1, 2), (2, 4), (3, 8), (4, 10)])
def test_the_ceiling_doubles_up_to_the_cap(tries: int, ceiling_s: float) -> None:
    assert decide(ValueError(), tries) == Again(ceiling_s)


@given(tries=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_jitter_is_full_and_no_number_of_tries_overflows(tries: int, draw: float) -> None:
    policy = RetryPolicy(max_tries=20_000, base_s=2, cap_s=600)
    found = policy.decide(ValueError(), tries=tries, age_s=0, rng=lambda: draw)
    assert found == Again(draw * policy.ceiling_s(tries))
    assert 0 <= policy.ceiling_s(tries) <= 600


@pytest.mark.parametrize("error", [Permanent("never"), KeyError("k")])
def test_named_errors_are_never_retried(error: Exception) -> None:
    assert decide(error, 1) == Dead("permanent")


def test_a_jobs_own_max_tries_wins_over_the_policys() -> None:
    assert decide(ValueError(), 5) == Dead("exhausted")
    assert decide(ValueError(), 5, max_tries=6) == Again(10)
    assert decide(ValueError(), 2, max_tries=2) == Dead("exhausted")


def test_no_retry_starts_after_the_maximum_age() -> None:
    assert decide(ValueError(), 1, age_s=98) == Again(2)
    assert decide(ValueError(), 1, age_s=98.1) == Dead("expired")
