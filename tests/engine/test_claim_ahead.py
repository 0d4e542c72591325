"""The number of jobs to claim ahead follows from the rate of recent ends."""

from __future__ import annotations

import pytest

from worker.engine.claim_ahead import ClaimAhead

pytestmark = pytest.mark.unit


def paced(max_jobs: int, ends: int, every_s: float) -> ClaimAhead:
    """Return the rate of a worker whose jobs ended one after the other until time 0."""
    pace = ClaimAhead(max_jobs)
    for n in range(ends):
        pace.ended((n - ends + 1) * every_s)
    return pace


def test_as_many_are_claimed_ahead_as_start_within_100_ms() -> None:
    assert 60 <= paced(32, 200, 1 / 640).ahead(0) <= 70
    assert paced(32, 200, 1 / 20_000).ahead(0) >= 1900


def test_none_are_claimed_ahead_before_the_rate_is_known() -> None:
    assert paced(32, 15, 0.001).ahead(0) == 0
    assert paced(32, 16, 0.001).ahead(0) > 0


def test_none_are_claimed_ahead_while_jobs_are_slow() -> None:
    assert paced(32, 200, 1 / 32).ahead(0) == 0
    assert paced(1, 200, 0.3).ahead(0) == 0
    assert paced(1, 200, 0.02).ahead(0) > 0


def test_a_pause_lowers_the_number() -> None:
    pace = paced(32, 200, 1 / 640)
    assert pace.ahead(0.05) < pace.ahead(0)
    assert pace.ahead(1.0) == 0


def test_a_reset_forgets_the_rate() -> None:
    pace = paced(32, 200, 1 / 640)
    pace.reset()
    assert pace.ahead(0) == 0
