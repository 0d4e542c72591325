"""What an attempt's outcome means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.delivery import FEW_ATTEMPTS, DeliveryState, Outcome, RetrySchedule, decide

SCHEDULE = RetrySchedule(max_attempts=5, base_s=2.0, cap_s=10.0)


def state(outcome: Outcome, attempt: int = 1) -> DeliveryState:
    return decide(outcome, attempt=attempt, schedule=SCHEDULE, rng=lambda: 0.5).state


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert state(Outcome(status=status), attempt=99) is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 425])
def test_a_passing_failure_is_tried_until_the_schedule_ends(status: int) -> None:
    assert state(Outcome(status=status), attempt=4) is DeliveryState.WAITING
    assert state(Outcome(status=status), attempt=5) is DeliveryState.DEAD


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404, 422])
def test_a_request_the_receiver_calls_wrong_gets_few_attempts(status: int) -> None:
    assert state(Outcome(status=status), attempt=FEW_ATTEMPTS - 1) is DeliveryState.WAITING
    assert state(Outcome(status=status), attempt=FEW_ATTEMPTS) is DeliveryState.DEAD


def test_410_and_a_permanent_error_end_it_at_once() -> None:
    assert state(Outcome(status=410)) is DeliveryState.DEAD
    assert state(Outcome(error="target_forbidden", permanent=True)) is DeliveryState.DEAD


@given(
    status=st.one_of(st.none(), st.integers(100, 599)),
    permanent=st.booleans(),
    attempt=st.integers(1, 10_000),
    limit=st.integers(1, 50),
    rng=st.floats(0, 1, exclude_max=True),
)
def test_it_ends_and_every_wait_is_within_its_ceiling(
    status: int | None, permanent: bool, attempt: int, limit: int, rng: float
) -> None:
    schedule = RetrySchedule(limit, 5.0, 36_000.0)
    outcome = Outcome(status=status, permanent=permanent)
    verdict = decide(outcome, attempt=attempt, schedule=schedule, rng=lambda: rng)
    assert (verdict.state is DeliveryState.DELIVERED) == (
        status is not None and 200 <= status < 300
    )
    if verdict.state is DeliveryState.WAITING:
        assert attempt < limit
        assert 0 <= verdict.wait_s <= min(36_000.0, 5.0 * 2 ** (attempt - 1))
