"""
Changes everything that matches filters: counts it first, then goes on in steps and shows its progress.

Nothing is kept between two steps: the form of the next one carries the cursor and the sums.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from worker.errors import InvalidArgument
from worker.queue.priority import Priority
from worker.queue.rows import JobState
from worker.web.access import Visitor
from worker.web.api import queries
from worker.web.api.actions import ACTIONS
from worker.web.api.performing import Action, perform
from worker.web.site import Site

# What one press of a button may take; the call behind it takes about a second.
PRESS_S = 5.0
_LABELS = {"cancel": "Cancel", "run": "Run now", "retry": "Retry", "delete": "Delete"}
_PAST = {
    "cancel": "asked to end",
    "run": "made due",
    "retry": "enqueued again",
    "delete": "deleted",
}

Count = Annotated[int, Meta(ge=0)]


class ChangeQuery(queries.Query, frozen=True):
    """
    What is changed, and the sums so far. cancel and run are about jobs, retry and delete about dead
    letters. expected: how many the count found, 0 where it did not come to its end.
    """

    action: Literal["cancel", "run", "retry", "delete"] = "cancel"
    state: JobState | UnsetType = UNSET
    function: queries.Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    id_prefix: queries.Name | UnsetType = UNSET
    error: queries.Name | UnsetType = UNSET
    min_tries: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    min_age_minutes: Annotated[int, Meta(ge=0, le=5_000_000)] = 0
    cursor: queries.JobCursor = ""
    looked: Count = 0
    matched: Count = 0
    done: Count = 0
    expected: Count = 0

    @property
    def is_of_dead(self) -> bool:
        return self.action in {"retry", "delete"}

    def filters(self) -> dict[str, str]:
        """The parts of the filter that were given, and the action."""
        names = ("state", "function", "priority", "id_prefix", "error")
        found = {name: str(queries.given(getattr(self, name)) or "") for name in names}
        numbers = {"min_tries": self.min_tries, "min_age_minutes": self.min_age_minutes}
        return {
            "action": self.action,
            **{name: text for name, text in found.items() if text},
            **{name: str(number) for name, number in numbers.items() if number},
        }

    def sums(self) -> dict[str, str]:
        """What the form of the next step carries beside the filters."""
        names = ("cursor", "looked", "matched", "done", "expected")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name)}


async def count(site: Site, query: ChangeQuery) -> dict[str, Any]:
    """Look at about a second's worth of jobs, and change nothing."""
    action, target = _step(query, dry_run=True)
    return _shown(_after(query, await action.run(site.queue, target)), is_dry=True)


async def change(site: Site, visitor: Visitor, query: ChangeQuery) -> dict[str, Any]:
    """
    Take steps for some seconds, each with its line in the audit trail.

    Raises:
        As `perform`. What was done stays done.
    """
    until = time.monotonic() + PRESS_S
    while True:
        action, target = _step(query, dry_run=False)
        query = _after(query, await perform(site, visitor, action, target))
        if not query.cursor or time.monotonic() >= until:
            return _shown(query, is_dry=False)


def _step(query: ChangeQuery, *, dry_run: bool) -> tuple[Action, queries.BulkQuery]:
    if query.is_of_dead and query.state is not UNSET:
        raise InvalidArgument(f"{query.action} is about dead letters, which have no state")
    if query.error is not UNSET and not query.is_of_dead:
        raise InvalidArgument("only dead letters have an error: retry or delete")
    wanted: dict[str, Any] = {
        "action": query.action,
        "dry_run": dry_run,
        "function": query.function,
        "priority": query.priority,
        "id_prefix": query.id_prefix,
        "min_tries": query.min_tries,
        "min_age_s": query.min_age_minutes * 60.0,
        "cursor": query.cursor,
    }
    if query.is_of_dead:
        return ACTIONS["dead/bulk"], queries.BulkDead(**wanted, error=query.error)
    return ACTIONS["jobs/bulk"], queries.BulkJobs(**wanted, state=query.state)


def _after(query: ChangeQuery, step: Any) -> ChangeQuery:
    return msgspec.structs.replace(
        query,
        cursor=step.cursor,
        looked=query.looked + step.looked,
        matched=query.matched + step.matched,
        done=query.done + step.done,
    )


def _shown(query: ChangeQuery, *, is_dry: bool) -> dict[str, Any]:
    return {
        "query": query,
        "filters": query.filters(),
        "sums": query.sums(),
        "expected": 0 if query.cursor else query.matched,
        "is_dry": is_dry,
        "label": _LABELS[query.action],
        "past": _PAST[query.action],
        "what": "dead letters" if query.is_of_dead else "jobs",
        "states": list(JobState),
        "priorities": list(Priority),
    }
