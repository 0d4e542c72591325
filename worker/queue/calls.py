"""What a caller asks for: a call of a job, and what makes a job the only one of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.queue.priority import Priority

Scope = Literal["queued", "running", "window"]


@dataclass(frozen=True, slots=True)
class Unique:
    """
    At most one job of a key at a time.

    scope: "queued" until it starts, "running" until it has ended (retries
        included), "window" for `window_s` seconds from the enqueue, ended or not.
    """

    key: str
    scope: Scope = "running"
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A job to be: what `enqueue` takes, as a value. `delay_s` counts from when it is stored."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    priority: Priority = Priority.DEFAULT
    job_id: str | None = None
    delay_s: float = 0
    expires_s: float | None = None
    then: Call | None = None


def call(
    name: str,
    *args: Any,
    priority: Priority = Priority.DEFAULT,
    job_id: str | None = None,
    delay_s: float = 0,
    expires_s: float | None = None,
    then: Call | None = None,
    **kwargs: Any,
) -> Call:
    """`call("name", 1, x=2)`: for `enqueue_many`, `gather`, `then` and `schedule`."""
    return Call(name, args, kwargs, Priority(priority), job_id, delay_s, expires_s, then)
