"""Tests the decisions about an attempt's outcome."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.options import retry_schedule
from worker.webhooks.policy import (
    FEW_ATTEMPTS,
    BreakerSign,
    DeliveryState,
    EndpointSign,
    Outcome,
    decide,
    parse_retry_after,
)

pytestmark = pytest.mark.unit

SCHEDULE = retry_schedule(max_attempts=5, base_s=2.0, cap_s=10.0)


def state(outcome: Outcome, attempt: int = 1) -> DeliveryState:
    return decide(outcome, attempt=attempt, schedule=SCHEDULE, rng=lambda: 0.5).state


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert state(Outcome(status=status), attempt=99) is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 425])
def test_a_transient_failure_is_retried_until_the_schedule_ends(status: int) -> None:
    assert state(Outcome(status=status), attempt=4) is DeliveryState.WAITING
    assert state(Outcome(status=status), attempt=5) is DeliveryState.DEAD


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404, 422])
def test_a_rejected_request_gets_few_attempts(status: int) -> None:
    assert state(Outcome(status=status), attempt=FEW_ATTEMPTS - 1) is DeliveryState.WAITING
    assert state(Outcome(status=status), attempt=FEW_ATTEMPTS) is DeliveryState.DEAD


def test_410_and_a_permanent_error_end_the_delivery_at_once() -> None:
    assert state(Outcome(status=410)) is DeliveryState.DEAD
    assert state(Outcome(error="target_forbidden", permanent=True)) is DeliveryState.DEAD


@given(
    status=st.one_of(st.none(), st.integers(100, 599)),
    permanent=st.booleans(),
    attempt=st.integers(1, 10_000),
    limit=st.integers(1, 50),
    rng=st.floats(0, 1, exclude_max=True),
)
def test_a_schedule_ends_and_every_wait_is_within_its_ceiling(
    status: int | None, permanent: bool, attempt: int, limit: int, rng: float
) -> None:
    schedule = retry_schedule(max_attempts=limit, base_s=5.0, cap_s=36_000.0)
    outcome = Outcome(status=status, permanent=permanent)
    verdict = decide(outcome, attempt=attempt, schedule=schedule, rng=lambda: rng)
    assert (verdict.state is DeliveryState.DELIVERED) == (
        status is not None and 200 <= status < 300
    )
    if verdict.state is DeliveryState.WAITING:
        assert attempt < limit
        assert 0 <= verdict.wait_s <= min(36_000.0, 5.0 * 2 ** (attempt - 1))


NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STANDARD = retry_schedule()


def test_the_standard_schedule_spans_75_hours() -> None:
    ceilings = [STANDARD.ceiling_s(attempt) for attempt in range(1, 10)]
    assert ceilings == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert sum(ceilings) / 3600 == pytest.approx(75.6, abs=0.1)
    assert STANDARD.ceiling_s(50) == 86_400


@pytest.mark.parametrize("error", ["timeout", "read", "protocol", "response_too_large"])
def test_a_2xx_is_delivered_whatever_came_after_it(error: str) -> None:
    assert state(Outcome(status=200, error=error)) is DeliveryState.DELIVERED


def test_our_own_failures_are_not_charged() -> None:
    for internal_failures in range(100):
        verdict = decide(
            Outcome(error="no_route", internal=True),
            attempt=99,
            schedule=SCHEDULE,
            rng=lambda: 0.99,
            internal_failures=internal_failures,
        )
        assert (verdict.state, verdict.charged) == (DeliveryState.WAITING, False)
        assert (verdict.breaker, verdict.endpoint) == (BreakerSign.NONE, EndpointSign.NONE)
        assert verdict.wait_s <= 300


@pytest.mark.parametrize(
    ("outcome", "host", "endpoint"),
    [
        (Outcome(status=200), BreakerSign.ALIVE, EndpointSign.TAKES),
        (Outcome(status=404), BreakerSign.ALIVE, EndpointSign.REFUSES),
        (Outcome(status=410), BreakerSign.ALIVE, EndpointSign.GONE),
        (Outcome(status=429), BreakerSign.ALIVE, EndpointSign.REFUSES),
        (Outcome(status=500), BreakerSign.FAILING, EndpointSign.REFUSES),
        (Outcome(error="timeout"), BreakerSign.FAILING, EndpointSign.REFUSES),
        (Outcome(status=200, error="read"), BreakerSign.ALIVE, EndpointSign.TAKES),
        (Outcome(status=404, error="read"), BreakerSign.ALIVE, EndpointSign.REFUSES),
        (Outcome(status=500, error="read"), BreakerSign.FAILING, EndpointSign.REFUSES),
        (Outcome(error="target_forbidden", permanent=True), BreakerSign.NONE, EndpointSign.REFUSES),
    ],
)
def test_the_signs_of_an_attempt_about_host_and_endpoint(
    outcome: Outcome, host: BreakerSign, endpoint: EndpointSign
) -> None:
    verdict = decide(outcome, attempt=1, schedule=SCHEDULE, rng=lambda: 0.5)
    assert (verdict.breaker, verdict.endpoint) == (host, endpoint)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120), (" 0 ", 0), ("9" * 400, 1e15), (None, None), ("", None), ("soon", None),
        ("-1", None), ("1.5", None), ("\u0661", None),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30), ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 14:00:30 +0200", 30), ("Sun Mar  1 12:00:30 2026", 30),
        ("Thu, 31 Dec 2026 23:59:59 GMT", 26_395_199), ("Sun, 99 Mar 2026 12:00:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_a_retry_after_is_honored_up_to_the_clamp() -> None:
    schedule = retry_schedule(max_attempts=10, base_s=1.0, retry_after_max_s=600.0)
    for asked, least, most in ((60.0, 60.0, 66.0), (90_000.0, 600.0, 660.0), (0.0, 0.0, 1.0)):
        outcome = Outcome(status=503, retry_after_s=asked)
        verdict = decide(outcome, attempt=1, schedule=schedule, rng=lambda: 0.5)
        assert least <= verdict.wait_s <= most
        assert verdict.slow_down


@given(text=st.one_of(st.text(max_size=40), st.from_regex(r"\w{3}, \d\d \w{3} \d{4} .*")))
def test_no_retry_after_breaks_the_parser(text: str) -> None:
    found = parse_retry_after(text, NOW)
    assert found is None or 0 <= found < math.inf


headers = st.one_of(
    st.none(),
    st.integers(0, 10**9).map(str),
    st.timedeltas(timedelta(days=-30), timedelta(days=3000)).map(
        lambda offset: format_datetime(NOW + offset, usegmt=True)
    ),
    st.text(max_size=20),
)


@given(
    status=st.one_of(st.none(), st.integers(100, 599)),
    error=st.sampled_from(["", "timeout", "connect", "read"]),
    retry_after=headers,
    attempt=st.integers(1, 60),
    clock_s=st.integers(-86_400, 86_400),
    left_s=st.floats(0, 500_000),
    jitter=st.floats(0, 1),
    draw=st.floats(0, 1, exclude_max=True),
    internal=st.booleans(),
)
def test_every_verdict_keeps_the_policys_promises(
    *,
    status: int | None,
    error: str,
    retry_after: str | None,
    attempt: int,
    clock_s: int,
    left_s: float,
    jitter: float,
    draw: float,
    internal: bool,
) -> None:
    now = NOW + timedelta(seconds=clock_s)
    schedule = retry_schedule(jitter=jitter, retry_after_max_s=7200)
    asked = parse_retry_after(retry_after, now)
    outcome = Outcome(
        status=status, error=error, internal=internal and bool(error), retry_after_s=asked
    )
    verdict = decide(outcome, attempt=attempt, schedule=schedule, rng=lambda: draw, left_s=left_s)
    ok = status is not None and 200 <= status < 300
    assert (verdict.state is DeliveryState.DELIVERED) == ok
    assert verdict.charged or outcome.internal
    assert (verdict.endpoint is EndpointSign.GONE) == (status == 410 and not outcome.internal)
    if verdict.state is not DeliveryState.WAITING:
        assert verdict.wait_s == 0
        return
    assert verdict.wait_s <= left_s
    if outcome.internal:
        assert verdict.wait_s <= 300
        return
    assert attempt < schedule.max_attempts
    assert status != 410
    clamped = min(asked or 0.0, schedule.retry_after_max_s)
    ceiling = schedule.ceiling_s(attempt)
    assert clamped <= verdict.wait_s <= max(ceiling, clamped * 1.1)
    assert verdict.wait_s >= ceiling * (1 - jitter) * 0.999
    if status is not None and 300 <= status < 500 and status not in {408, 425, 429}:
        assert attempt < FEW_ATTEMPTS
