"""Records the runs that this process has begun, to know which agents will be written again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

# A run that has not ended by then may have ended in another process.
_LONGEST_S = 60.0


class Runs:
    """The runs that this process has begun, and that have not ended yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, run_id: str, agent_id: str) -> None:
        self._begun[run_id] = (agent_id, self._clock() + _LONGEST_S)

    def end(self, run_id: str) -> None:
        self._begun.pop(run_id, None)

    def under_way(self, agent_id: str) -> bool:
        """Whether a run of the agent has not ended, so that the agent will be written again."""
        while self._begun and next(iter(self._begun.values()))[1] < self._clock():
            self._begun.popitem(last=False)
        return any(agent == agent_id for agent, _ in self._begun.values())
