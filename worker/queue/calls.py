"""Describes a job before it is enqueued: its call, and its uniqueness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias

from worker.queue.priority import Priority

# What a job's function returns: Any when the job is named by text. Only a type checker needs the
# default; at run time typing_extensions takes longer to import than this package.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", default=Any, covariant=True)
else:
    from typing import TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

JobName: TypeAlias = str | Callable[..., Awaitable[T]]
Scope = Literal["queued", "running", "window"]


@dataclass(frozen=True, slots=True)
class Unique:
    """
    Allows at most one job per key at a time.

    scope: how long the job holds the key. "queued": until it starts. "running":
        until it has ended, retries included. "window": for `window_s` seconds
        from the enqueue, whether it has ended or not.
    """

    key: str
    scope: Scope = "running"
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """The arguments of `enqueue` as a value. `delay_s` counts from when the job is stored."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    priority: Priority = Priority.DEFAULT
    job_id: str | None = None
    delay_s: float = 0
    expires_s: float | None = None
    then: Call | None = None


def name_of(job: JobName[Any]) -> str:
    """The name under which workers register a function. Anything else stays, to be refused."""
    name: Any = job
    if not isinstance(job, str) and iscoroutinefunction(job):
        name = getattr(job, "__qualname__", job)
    return name  # type: ignore[no-any-return]


def call(
    name: JobName[T],
    *args: Any,
    priority: Priority = Priority.DEFAULT,
    job_id: str | None = None,
    delay_s: float = 0,
    expires_s: float | None = None,
    then: Call | None = None,
    **kwargs: Any,
) -> Call[T]:
    """Build a Call for `enqueue_many`, `gather`, `then` or `schedule`: `call("name", 1, x=2)`."""
    if type(priority) is not Priority:
        priority = Priority(priority)
    return Call(name_of(name), args, kwargs, priority, job_id, delay_s, expires_s, then)
