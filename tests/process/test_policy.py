"""The restart policy of worker processes, without processes or clocks."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.process.policy import (
    CrashWindow,
    Ending,
    ExitCode,
    RestartPolicy,
    SlotHistory,
    decide_restart,
)

pytestmark = pytest.mark.unit

POLICY = RestartPolicy()


class TopRandom(Random):
    """Draws the upper bound, so that each delay equals its ceiling."""

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("exit_code", "uptime_s", "ending"),
    [
        (ExitCode.DRAINED, 0.1, Ending.CLEAN),
        (ExitCode.RECYCLE, 0.1, Ending.CLEAN),
        (ExitCode.BAD_CONFIGURATION, 29.9, Ending.BAD_CONFIGURATION),
        (ExitCode.BAD_CONFIGURATION, 30.0, Ending.CRASH),
        (ExitCode.CRASHED, 3600.0, Ending.CRASH),
        (ExitCode.FORCED, 3600.0, Ending.CRASH),
        (-9, 0.1, Ending.CRASH),
    ],
)
def test_an_exit_code_means(exit_code: int, uptime_s: float, ending: Ending) -> None:
    assert decide_restart(exit_code, uptime_s, POLICY) is ending


def test_the_backoff_doubles_from_half_a_second_to_30() -> None:
    history = SlotHistory(POLICY)

    ceilings = [history.wait_s(Ending.CRASH, 1.0, TopRandom()) for _ in range(8)]

    assert ceilings == [0.5, 1, 2, 4, 8, 16, 30, 30]


@given(st.integers(1, 2000), st.integers())
def test_the_backoff_has_full_jitter_and_never_passes_its_cap(crashes: int, seed: int) -> None:
    history, rng = SlotHistory(POLICY), Random(seed)
    for _ in range(crashes - 1):
        history.wait_s(Ending.CRASH, 0.0, rng)

    assert 0 <= history.wait_s(Ending.CRASH, 0.0, rng) <= min(30.0, 0.5 * 2 ** min(crashes, 50))


@pytest.mark.parametrize(("ending", "uptime_s"), [(Ending.CRASH, 30.0), (Ending.CLEAN, 5.0)])
def test_a_good_run_resets_the_backoff(ending: Ending, uptime_s: float) -> None:
    history = SlotHistory(POLICY)
    for _ in range(5):
        history.wait_s(Ending.CRASH, 0.0, TopRandom())

    history.wait_s(ending, uptime_s, TopRandom())

    assert history.wait_s(Ending.CRASH, 0.0, TopRandom()) <= 1.0


@pytest.mark.parametrize(("uptime_s", "wait_s"), [(0.25, 0.75), (1.0, 0.0), (900.0, 0.0)])
def test_a_clean_end_is_replaced_at_once_but_once_a_second(uptime_s: float, wait_s: float) -> None:
    assert SlotHistory(POLICY).wait_s(Ending.CLEAN, uptime_s, Random(1)) == wait_s


def test_the_sixth_crash_within_a_minute_is_too_many() -> None:
    window = CrashWindow(POLICY)

    assert [window.note(float(n)) for n in range(6)] == [False] * 5 + [True]


def test_six_crashes_in_more_than_a_minute_are_tolerated() -> None:
    window = CrashWindow(POLICY)

    assert not any(window.note(12.1 * n) for n in range(50))


def test_no_crash_is_tolerated_when_none_is_allowed() -> None:
    assert CrashWindow(RestartPolicy(max_crashes=0)).note(1.0)
