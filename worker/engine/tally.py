"""Groups the ends of a poll for the history: its script counts a few groups, not every end."""

from __future__ import annotations

from collections.abc import Sequence

from worker.engine.records import Group
from worker.engine.slots import Outcome
from worker.queue.series import OUTCOMES, bucket_of

_NUMBERS = {outcome: number for number, outcome in enumerate(OUTCOMES, 1)}
# They ended without a run, or with one that was cut short.
_UNTIMED = frozenset({"given_back", "parked"})
# A due time that a foreign client wrote may be any number.
_MOST_WAIT_S = 30 * 86400.0


def tally(batch: Sequence[Outcome]) -> list[Group]:
    """
    Return the groups of equal ends (lua/_history.lua), and add its group's number to each end.

    The script subtracts the ends that do not count: their claims were lost.
    """
    # A busy worker's polls have a hundred ends, so each step counts.
    groups: dict[tuple[str, int, str, int, int, int], list[float]] = {}
    for claim, end, outcome in batch:
        run_s, wait_s = claim.run_s, claim.wait_s
        run, wait = bucket_of(run_s), bucket_of(wait_s)
        if run_s < 0 or outcome in _UNTIMED:
            if outcome == "started":
                continue
            run, wait, run_s, wait_s = -1, 0, 0.0, 0.0
        key = (claim.function, claim.number, outcome, claim.stalled_count, run, wait)
        sums = groups.get(key)
        if sums is None:
            groups[key] = sums = [len(groups) + 1, 0, 0.0, 0.0]
        sums[1] += 1
        sums[2] += run_s
        sums[3] += wait_s
        end.append(sums[0])
    return [_group(*key, *sums) for key, sums in groups.items()]


def _group(  # noqa: PLR0917
    function: str,
    number: int,
    outcome: str,
    lapsed: int,
    run: int,
    wait: int,
    _: float,
    ends: float,
    run_s: float,
    wait_s: float,
) -> Group:
    wait_us = round(min(wait_s, ends * _MOST_WAIT_S) * 1e6)
    cell = _NUMBERS.get(outcome, 0)
    return [number, function, cell, lapsed, ends, run, wait, round(run_s * 1e6), wait_us]
