"""How many jobs are claimed ahead, from when the recent ones ended."""

from __future__ import annotations

import pytest

from worker.engine.claim_ahead import ClaimAhead

pytestmark = pytest.mark.unit


def paced(max_jobs: int, ends: int, every_s: float) -> ClaimAhead:
    """A worker whose jobs ended one after the other until the time 0."""
    pace = ClaimAhead(max_jobs)
    for n in range(ends):
        pace.ended((n - ends + 1) * every_s)
    return pace


def test_as_many_as_start_within_a_tenth_of_a_second() -> None:
    assert 60 <= paced(32, 200, 1 / 640).ahead(0) <= 70
    assert paced(32, 200, 1 / 20_000).ahead(0) >= 1900


def test_none_before_the_pace_is_known() -> None:
    assert paced(32, 15, 0.001).ahead(0) == 0
    assert paced(32, 16, 0.001).ahead(0) > 0


def test_none_while_slots_are_taken_for_long() -> None:
    assert paced(32, 200, 1 / 32).ahead(0) == 0
    assert paced(1, 200, 0.3).ahead(0) == 0
    assert paced(1, 200, 0.02).ahead(0) > 0


def test_a_pause_brings_it_down() -> None:
    pace = paced(32, 200, 1 / 640)
    assert pace.ahead(0.05) < pace.ahead(0)
    assert pace.ahead(1.0) == 0


def test_what_did_not_start_ends_it() -> None:
    pace = paced(32, 200, 1 / 640)
    pace.reset()
    assert pace.ahead(0) == 0
