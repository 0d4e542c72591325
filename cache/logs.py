"""
Logs events to what the application has configured: structlog, or else `logging`.

An application that configured neither gets warnings and errors as one line each on
standard error, the last resort of `logging`. Tracebacks show no local variables, whoever
renders them: those may hold a job's arguments, bodies and secrets, and rendering
them blocks the event loop. docs/events.md lists the events.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

# Limits of one traceback, so that a recursion or a long chain costs the event loop little.
_MAX_FRAMES, _MAX_CHAIN = 50, 20
_MAX_CHARS, _HEAD_CHARS = 16_384, 2_048
_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}


class Logger:
    """Logs constant event names with fields. `exc_info` is True or an exception."""

    __slots__ = ("_bound", "_name")

    def __init__(self, name: str, bound: Any = None) -> None:
        self._name = name
        self._bound = bound

    def bind(self) -> Logger:
        """Look up structlog's configuration now, once: for loggers that are used for every job."""
        found = _structlog(self._name)
        return self if found is None else Logger(self._name, found.bind())

    @property
    def bound_info(self) -> Callable[..., Any]:
        """`info` without a detour: for events of every job. It takes no `exc_info`."""
        return self.info if self._bound is None else cast(Callable[..., Any], self._bound.info)

    def debug(self, event: str, /, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, event, {"exc_info": True, **fields})

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        target = self._bound or _structlog(self._name)
        exc = _exception(fields.pop("exc_info", None))
        if target is None:
            _log_to_logging(self._name, level, event, fields, exc)
            return
        if exc is not None:
            # As text: the renderer of the application might show local variables.
            fields["exception"] = plain_traceback(exc)
        getattr(target, _NAMES[level])(event, **fields)


def get_logger(name: str) -> Logger:
    """A logger with this name. It looks up the application's configuration at each event."""
    return Logger(name)


def plain_traceback(exc: BaseException) -> str:
    """Render a traceback without local variables, at most 16 KiB of it."""
    if _is_short_chain(exc):
        lines = traceback.format_exception(exc, limit=-_MAX_FRAMES)
    else:
        lines = [*traceback.format_tb(exc.__traceback__, limit=-_MAX_FRAMES), _one_line(exc)]
    # A lone surrogate (a file name that is not UTF-8) would make the handler of a file fail.
    text = "".join(lines).rstrip("\n").encode(errors="backslashreplace").decode()
    if len(text) <= _MAX_CHARS:
        return text
    return f"{text[:_HEAD_CHARS]}\n[...]\n{text[_HEAD_CHARS - _MAX_CHARS :]}"


def _one_line(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001  (whatever an exception's own code raises)
        text = "<its text cannot be read>"
    return f"{type(exc).__name__}: {text[:_HEAD_CHARS]}"


def _is_short_chain(exc: BaseException | None) -> bool:
    """Whether the standard library, which visits every cause, renders it quickly."""
    for _ in range(_MAX_CHAIN):
        if exc is None:
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _is_plain(exc: BaseException) -> bool:
    """Whether `logging` may render it: a short chain or group of texts that every file can hold."""
    left: list[BaseException] = [exc]
    for _ in range(_MAX_CHAIN):
        if not left:
            return True
        found = left.pop()
        try:
            if len(str(found).encode()) > _MAX_CHARS:
                return False
        except Exception:  # noqa: BLE001  (whatever an exception's own code raises)
            return False
        before = found.__cause__ or found.__context__
        left += [] if before is None else [before]
        if isinstance(found, BaseExceptionGroup):
            left += found.exceptions
    return False


def _structlog(name: str) -> Any:
    """structlog's logger if the application uses structlog and configured it, else None."""
    # Not imported here: it would bring rich into every process that uses the cache.
    structlog: Any = sys.modules.get("structlog")
    if structlog is None or not structlog.is_configured():
        return None
    return structlog.get_logger(name)


def _exception(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    return sys.exc_info()[1] if exc_info else None


def _log_to_logging(
    name: str, level: int, event: str, fields: dict[str, Any], exc: BaseException | None
) -> None:
    logger = logging.getLogger(name)
    if not logger.isEnabledFor(level):
        return
    structlog: Any = sys.modules.get("structlog")
    if structlog is not None:  # the job that runs
        fields = {**structlog.contextvars.get_contextvars(), **fields}
    if exc is not None and not (logger.hasHandlers() and _is_plain(exc)):
        # With no handler `logging` would print the traceback's lines, too.
        fields.setdefault("error", _one_line(exc))
        exc = None
    text = " ".join([event, *(f"{key}={value!r}" for key, value in fields.items())])
    logger.log(level, text, exc_info=exc, stacklevel=4)
