"""Postpones our own jobs, uncharged, while the queue's server refuses their commands or is away."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from redis import exceptions

from cache.connection.refusals import explain, refusal_of
from worker.errors import Postponed, QueueMemoryFull, QueueUnavailable

_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, QueueUnavailable, QueueMemoryFull)
Job = Callable[..., Coroutine[Any, Any, Any]]


def patient(coroutine: Job) -> Job:
    """
    Our jobs work on the queue's server alone, so its refusal is never their fault.

    A right that was taken away, a full server and a lost one would otherwise use up their tries.
    """

    @wraps(coroutine)
    async def run(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await coroutine(ctx, *args, **kwargs)
        except (exceptions.RedisError, QueueUnavailable, QueueMemoryFull) as exc:
            if not isinstance(exc, _AWAY) and refusal_of(exc) is None:
                raise
            raise Postponed(explain(exc)) from None

    return run
