"""Defines which jobs or dead letters an operator means: filters that combine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from worker.errors import InvalidArgument
from worker.queue.arguments import require_name, require_priority
from worker.queue.priority import Priority

_MOST_ARGUMENTS = 16
_LONGEST_AGE_S = 10 * 366 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """
    What a job or dead letter has to be; the parts combine.

    min_tries: charged so far, at least. min_age_s: since it was enqueued, of a dead letter since it
    died. error: a part of a dead letter's error or reason, in any case; only dead letters have one.
    arguments: place or dotted path -> text: `{"0": "a", "user.id": "7"}`.
    """

    function: str | None = None
    priority: Priority | None = None
    id_prefix: str = ""
    min_tries: int = 0
    min_age_s: float = 0.0
    error: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """
        Raises:
            InvalidArgument: a part is not valid; the message names it.
        """
        if self.function is not None:
            require_name("function", self.function)
        for what in ("id_prefix", "error"):
            if getattr(self, what):
                require_name(what, getattr(self, what))
        if self.priority is not None:
            require_priority(self.priority)
        if not isinstance(self.min_tries, int) or self.min_tries < 0:
            raise InvalidArgument(
                f"min_tries must be a whole number from 0, not {self.min_tries!r}"
            )
        if not 0 <= self.min_age_s <= _LONGEST_AGE_S:
            raise InvalidArgument(
                f"min_age_s must be 0 to {_LONGEST_AGE_S:g}, not {self.min_age_s!r}"
            )
        if len(self.arguments) > _MOST_ARGUMENTS:
            raise InvalidArgument(f"at most {_MOST_ARGUMENTS} arguments can be compared")

    def accepts(
        self,
        now: datetime,
        *,
        job_id: str,
        function: str,
        priority: str,
        tries: int,
        since: datetime | None,
        error: str | None,
    ) -> bool:
        """Whether a job is meant, as far as its arguments are not asked for."""
        return (
            self.function in (None, function)
            and self.priority in (None, priority)
            and job_id.startswith(self.id_prefix)
            and tries >= self.min_tries
            and self._is_old(now, since)
            and (
                not self.error or (error is not None and self.error.casefold() in error.casefold())
            )
        )

    def accepts_arguments(self, args: list[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether each path leads to a value whose text is the one that was given."""
        given = {**{str(at): value for at, value in enumerate(args)}, **kwargs}
        return all(_text_at(given, path) == text for path, text in self.arguments.items())

    def _is_old(self, now: datetime, since: datetime | None) -> bool:
        if not self.min_age_s:
            return True
        return since is not None and now - since >= timedelta(seconds=self.min_age_s)


def _text_at(value: Any, path: str) -> str | None:
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return str(value)
