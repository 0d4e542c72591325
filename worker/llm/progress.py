"""Measures for how long the slowest open batch of each state has made no progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.keys import QueueKeys
from worker.llm.batch_reads import run_apart
from worker.llm.states import BatchState
from worker.numbers import whole

# Open batches that are looked at: those that were checked longest ago come first.
_MOST = 1000
_PAGE = 200
_FIELDS = ("state", "error", "progressed", "created")


@dataclass(frozen=True, slots=True)
class StateProgress:
    """
    The open batches in one state.

    idle_s: for how long the one has not moved that has not moved longest; 0 without one.
    failing: those with an error that keeps them from moving.
    """

    state: BatchState
    batches: int = 0
    failing: int = 0
    idle_s: float = 0.0


async def read_progress(client: Any, keys: QueueKeys) -> list[StateProgress]:
    """Each state that a batch can be open in, with at most 1,000 batches counted in all."""
    ids = await client.zrange(keys.llm_underway, 0, _MOST - 1)
    seconds, _ = await client.time()
    rows: list[Any] = []
    for at in range(0, len(ids), _PAGE):
        async with client.pipeline(transaction=False) as pipe:
            for id_ in ids[at : at + _PAGE]:
                pipe.hmget(keys.llm_batch(id_.decode(errors="replace")), *_FIELDS)
            rows += await run_apart(pipe)
    # A key of another type is no batch.
    rows = [row for row in rows if not isinstance(row, Exception)]
    return [_of_state(state, rows, seconds) for state in BatchState if not state.is_end]


def _of_state(state: BatchState, rows: list[Any], now_s: int) -> StateProgress:
    mine = [row for row in rows if row[0] == state.value.encode()]
    # Batches of an earlier release have no time of their last move.
    moved = [whole(row[2]) or whole(row[3]) for row in mine]
    idle_s = max((now_s - ms / 1000 for ms in moved if ms), default=0.0)
    failing = sum(bool(row[1]) for row in mine)
    return StateProgress(state, len(mine), failing, max(0.0, idle_s))
