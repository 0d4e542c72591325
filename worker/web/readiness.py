"""Decides whether a process is ready, from what its server says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.queue.fleet import WorkerRow
from worker.queue.overview import Overview

# Another worker takes a lapsed lease over within a few seconds.
LATE_S = 10.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """`problems` says what is wrong, one line each; none means ready."""

    problems: list[str]

    @property
    def is_ready(self) -> bool:
        return not self.problems


def readiness_of(overview: Overview, workers: Sequence[WorkerRow], host: str | None) -> Readiness:
    """
    `host`: whose workers have to be alive and not draining; None asks for the server alone.
    """
    if host is None:
        return Readiness([])
    problems = []
    mine = [worker for worker in workers if worker.host == host]
    if not mine:
        problems.append(f"no worker of {host} is alive")
    elif all(worker.draining for worker in mine):
        problems.append(f"the workers of {host} drain")
    if overview.lease_late_s > LATE_S:
        problems.append(f"a lease has lapsed for {overview.lease_late_s:.0f} s: no worker claims")
    return Readiness(problems)
