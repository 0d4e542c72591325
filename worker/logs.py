"""
Configures the workers' logs: structlog, JSON lines or console output, on stderr.

arq and other libraries log through the standard library; their records get the
same format. Job id, task, try and worker id come from context variables.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from worker.terminal import printable_event

_ARQ_LOGGERS = ("arq.worker", "arq.connections", "arq.jobs", "arq.utils")


def configure_logging(level: str, form: str) -> None:
    """
    Configure logging for this process.

    level: a name such as INFO.
    form: json, console, or auto (console on a terminal, else json).
    """
    pretty = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_logger_name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: list[Any] = (
        [
            # Print no local variables in tracebacks: they may hold bodies and secrets.
            structlog.processors.format_exc_info,
            printable_event,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    _take_over_arq()
    # These log one line per request at INFO; our own events name the delivery instead.
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _take_over_arq() -> None:
    """
    Remove the handler that arq's command adds to its logger, or each line appears twice.

    The command adds it after it has loaded our settings class, and so after this function. A
    filter of arq's loggers, which the command leaves alone, removes it at the first line.
    """
    arq = logging.getLogger("arq")
    arq.propagate = True
    _remove_own_handlers(arq)
    for name in _ARQ_LOGGERS:
        logger = logging.getLogger(name)
        if _remove_own_handlers not in logger.filters:
            logger.addFilter(_remove_own_handlers)
    # At INFO arq logs each job's arguments, which may hold private data.
    logging.getLogger("arq.worker").setLevel(max(logging.WARNING, logging.getLogger().level))


def _remove_own_handlers(_record: object) -> bool:
    logging.getLogger("arq").handlers.clear()
    return True
