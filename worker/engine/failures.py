"""Describes what a user's code raised, and logs it. Neither can fail, whatever was raised."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from cache.encoding.codec import RemoteError
from cache.logs import Logger

_MOST_ERROR_CHARS = 2000
# A result keeps more of the text than a dead letter: a validation error is long.
_MOST_MESSAGE_CHARS = 64 * 1024
_UNPRINTABLE = "<its text cannot be read>"


def describe(exc: BaseException) -> str:
    """Return class and message as text that can be stored and logged, at most 2,000 characters."""
    kind, message = name_and_text(exc)
    return f"{kind}: {message}"[:_MOST_ERROR_CHARS] if message else kind


def portable(exc: BaseException) -> BaseException:
    """Return what our own codec always encodes: the exception's class name and text."""
    if isinstance(exc, asyncio.CancelledError):
        return exc
    return RemoteError(*name_and_text(exc))


def name_and_text(exc: BaseException) -> tuple[str, str]:
    """Return the class name and the message as UTF-8 text of a bounded length."""
    try:
        kind = _plain(type(exc).__name__)
    except BaseException:  # noqa: BLE001  (a metaclass may raise anything)
        kind = "Exception"
    try:
        return kind, _plain(str(exc))
    except BaseException:  # noqa: BLE001  (`__str__` of a user's class may raise anything)
        return kind, _UNPRINTABLE


def _plain(text: str) -> str:
    # `join` copies a subclass of str into a str: its own methods may raise.
    cut = str.__getitem__("".join((text,)), slice(_MOST_MESSAGE_CHARS))
    return cut.encode("utf-8", "backslashreplace").decode()


def is_closed(exc: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether Python closes the coroutine of `task`, in contrast to a job that raised the same."""
    if not isinstance(exc, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:
        return True  # no loop runs any more


class SafeLog:
    """
    A logger for what happens around a job. An event that cannot be logged is dropped.

    A formatter may fail on an exception (a group nested too deeply, a `__str__` that ends the
    process), and that must not change how the job ends.
    """

    __slots__ = ("_info", "_log")

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._info = log.bound_info

    def debug(self, event: str, /, **fields: Any) -> None:
        self._try(self._log.debug, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        try:  # noqa: SIM105  (this is called for every job)
            self._info(event, **fields)
        except BaseException:  # noqa: BLE001, S110  (see the class)
            pass

    def warning(self, event: str, /, **fields: Any) -> None:
        self._try(self._log.warning, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._try(self._log.error, event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._try(self._log.error, event, {"exc_info": sys.exc_info()[1], **fields})

    def _try(self, log: Any, event: str, fields: dict[str, Any]) -> None:
        try:
            log(event, **fields)
        except BaseException:  # noqa: BLE001  (see the class)
            if fields.pop("exc_info", None) is not None:
                self._try(log, event, fields)
