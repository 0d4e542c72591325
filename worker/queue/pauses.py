"""
Pauses a priority or a function for all workers, and resumes it.

A pause is kept on the server, and every claim reads it: running jobs continue, waiting ones
wait. A due job of a paused function is moved out of the way of the others, once, and costs no
claim; its due time is kept. Only a resume ends the pause.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from cache.logs import get_logger
from worker.errors import InvalidArgument
from worker.keys import EngineKeys, QueueKeys
from worker.numbers import moment
from worker.queue.arguments import require_name, require_priority
from worker.queue.calls import JobName, name_of
from worker.queue.job import reach
from worker.queue.priority import Priority

log = get_logger(__name__)

_PAUSE = load(__package__, "pause")
_RESUME = load(__package__, "resume")
MOST_PAUSES = 128


@dataclass(frozen=True, slots=True)
class Pause:
    """
    A priority or a function that is paused; the other field is None.

    waiting: the due jobs that it keeps from running; of a function, those that a worker has
    already moved aside.
    """

    priority: Priority | None
    function: str | None
    since: datetime
    waiting: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The names of what is paused, for reads of many jobs."""

    priorities: frozenset[str]
    functions: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.priorities or self.functions)

    def holds(self, priority: str, function: Any) -> bool:
        """Whether a due job is kept from running."""
        return priority in self.priorities or function in self.functions


class Pauses:
    """Reads and writes the pauses of one queue."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys
        self._engine = EngineKeys(keys)

    async def pause(
        self, *, function: JobName[Any] | None = None, priority: Priority | None = None
    ) -> bool:
        """
        Stop claiming jobs of this function or priority, in all workers. False if it is paused already.

        Running jobs continue. Jobs can be enqueued, aborted and deleted; a tick of a cron or a
        schedule is enqueued once. Workers with stock arq's engine ignore pauses.

        Raises:
            InvalidArgument: neither or both were given, or there are 128 pauses.
        """
        kind, name = _target(function, priority)
        outcome = await self._change(kind, name, pause=True)
        if outcome == -1:
            raise InvalidArgument(
                f"{MOST_PAUSES} functions and priorities are paused; resume one of them first"
            )
        if outcome:
            log.info("queue.paused", kind=kind, name=name)
        return bool(outcome)

    async def resume(
        self, *, function: JobName[Any] | None = None, priority: Priority | None = None
    ) -> bool:
        """
        End a pause. False if there is none.

        Held jobs of a function get their first due time back, in steps of 500. If this call is
        canceled, the workers do the remaining steps.

        Raises:
            InvalidArgument: neither or both were given.
        """
        kind, name = _target(function, priority)
        is_changed = bool(await self._change(kind, name, pause=False))
        if is_changed:
            log.info("queue.resumed", kind=kind, name=name)
        if kind == "function":
            keys = [self._engine.paused, self._engine.wake, *self._engine.queues]
            while await reach(_RESUME.run(self._client, keys, [name])):
                pass
        return is_changed

    async def list(self) -> list[Pause]:
        """Every pause: priorities first, then functions, by name."""
        rows = await reach(self._client.hgetall(self._engine.paused))
        found = [_pause(*_split(field), since) for field, since in rows.items() if _is_pause(field)]
        seconds, micros = await reach(self._client.time())
        now_ms = seconds * 1000 + micros // 1000
        pauses = []
        for each in sorted(found, key=lambda pause: (pause.function or "", pause.priority or "")):
            async with self._client.pipeline(transaction=False) as pipe:
                if each.priority is not None:
                    pipe.zcount(self._keys.queue(each.priority), "-inf", now_ms)
                else:
                    for key in self._engine.held(each.function or ""):
                        pipe.zcard(key)
                counts = await reach(pipe.execute())
            pauses.append(replace(each, waiting=sum(counts)))
        return pauses

    async def names(self) -> Paused:
        """What is paused, in one command."""
        rows = await reach(self._client.hkeys(self._engine.paused))
        pairs = [_split(row) for row in rows]
        return Paused(
            frozenset(name for kind, name in pairs if kind == "priority"),
            frozenset(name for kind, name in pairs if kind == "function"),
        )

    async def _change(self, kind: str, name: str, *, pause: bool) -> int:
        args = [kind, name, int(pause), MOST_PAUSES]
        keys = [self._engine.paused, self._engine.wake]
        return int(await reach(_PAUSE.run(self._client, keys, args)))


def _target(function: JobName[Any] | None, priority: Priority | None) -> tuple[str, str]:
    if priority is not None and function is None:
        return "priority", require_priority(priority).value
    if function is None or priority is not None:
        raise InvalidArgument("give either a function or a priority")
    name = name_of(function)
    require_name("function", name, longest=256)
    return "function", name


def _split(field: bytes) -> tuple[str, str]:
    kind, _, name = field.decode(errors="replace").partition(":")
    return kind, name


def _is_pause(field: bytes) -> bool:
    kind, name = _split(field)
    return kind == "function" or (kind == "priority" and name in list(Priority))


def _pause(kind: str, name: str, since: bytes) -> Pause:
    at = moment(since)
    priority = Priority(name) if kind == "priority" else None
    return Pause(priority, name if priority is None else None, at, 0)
