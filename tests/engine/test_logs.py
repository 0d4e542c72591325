"""A failing job is logged without its locals and arguments, however the application logs."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
from typing import Any

import pytest
import structlog
from arq.logs import default_log_config

from tests.support.engine import burst
from tests.support.queues import queue_of
from worker.engine import RetryPolicy
from worker.engine.log_context import log_context
from worker.engine.options import EngineOptions
from worker.logs import configure_logging

pytestmark = pytest.mark.integration

SECRET = "hunter2" * 2
ONCE = EngineOptions(retry=RetryPolicy(max_tries=1))


async def leak(ctx: dict[str, Any], password: str) -> None:
    """Hold the secret in an argument, in locals of two frames and in a cause's frame."""
    nested = {"headers": [password]}
    try:
        _fail(nested)
    except KeyError as exc:
        raise RuntimeError("broken as asked") from exc


def _fail(nested: dict[str, list[str]]) -> None:
    first = nested["headers"][0]
    raise KeyError(len(first))


def _nothing() -> None:
    logging.getLogger().handlers.clear()


def _basic_logging() -> None:
    logging.basicConfig(stream=sys.stderr, force=True)


def _structlog_defaults() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def _structlog_with_dicts() -> None:
    structlog.configure(
        processors=[structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@pytest.mark.parametrize(
    "configure",
    [
        lambda: configure_logging("DEBUG", "json"),
        lambda: configure_logging("DEBUG", "console"),
        _nothing,
        _basic_logging,
        _structlog_defaults,
        _structlog_with_dicts,
    ],
    ids=["json", "console", "unconfigured", "logging", "structlog", "structlog with dicts"],
)
async def test_a_secret_in_a_local_or_argument_is_never_logged(
    client: Any, prefix: str, capsys: pytest.CaptureFixture[str], configure: Any
) -> None:
    configure()
    await queue_of(client, prefix).enqueue("leak", SECRET)
    await burst(client, prefix, [leak], options=ONCE)
    out, err = capsys.readouterr()
    assert "job.died" in err
    assert "broken as asked" in err
    assert SECRET not in out + err
    assert out == ""
    if configure is _nothing:
        events = [line.split()[0] for line in err.splitlines()]
        assert events == ["queue.server_without_aof", "job.died"]
    else:
        assert "Traceback" in err
        assert "KeyError" in err


def test_a_line_of_arq_appears_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    # arq's command configures its own handler after it has loaded our settings class.
    logging.config.dictConfig(default_log_config(verbose=False))
    for name in ("arq.worker", "arq.connections"):
        logging.getLogger(name).warning("Health check failed")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["Health check failed"] * 2


def test_what_names_the_job_can_be_bound_anew_by_the_job() -> None:
    """The variables are structlog's own, not others of the same names."""
    log_context("job_id", "task")("a", "f")
    assert structlog.contextvars.get_contextvars() == {"job_id": "a", "task": "f"}
    structlog.contextvars.bind_contextvars(job_id="b", more=1)
    structlog.contextvars.unbind_contextvars("task")
    assert structlog.contextvars.get_contextvars() == {"job_id": "b", "more": 1}
