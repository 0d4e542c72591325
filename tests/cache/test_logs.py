"""Events reach what the application configured, and tracebacks cost little."""

from __future__ import annotations

import logging
import time

import pytest
import structlog

from cache.logs import get_logger, plain_traceback

pytestmark = pytest.mark.unit

log = get_logger("letta.test")


def fail(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as exc:
        return exc


def test_an_unconfigured_application_gets_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger().handlers.clear()
    log.info("thing.started", count=1)
    log.warning("thing.broke", name="a\nb", exc_info=fail(ValueError("why")))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "thing.broke name='a\\nb' error='ValueError: why'\n"


def test_a_configured_logging_gets_the_event_and_the_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exc = fail(ValueError("why"))
    log.error("thing.broke", name="a", exc_info=exc)
    (record,) = caplog.records
    assert record.getMessage() == "thing.broke name='a'"
    assert record.exc_info
    assert record.exc_info[1] is exc
    assert (record.levelno, record.funcName) == (
        logging.ERROR,
        test_a_configured_logging_gets_the_event_and_the_exception.__name__,
    )


def test_a_configured_structlog_gets_the_fields() -> None:
    with structlog.testing.capture_logs() as found:
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("thing.broke", count=3)
    (line,) = found
    assert line["event"] == "thing.broke"
    assert line["count"] == 3
    assert line["log_level"] == "error"
    assert "exc_info" not in line
    assert line["exception"].endswith("ValueError: why")


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a\udcff"),
        ExceptionGroup("many", [ValueError("a\udcff")]),
        ValueError("x" * 10_000_000),
    ],
    ids=["surrogate", "surrogate in a group", "huge"],
)
def test_what_a_log_file_cannot_hold_is_logged_as_one_line(
    caplog: pytest.LogCaptureFixture, exc: Exception
) -> None:
    log.error("thing.broke", exc_info=fail(exc))
    (record,) = caplog.records
    assert record.exc_info is None
    assert len(record.getMessage().encode()) < 5_000
    assert f"error='{type(exc).__name__}: " in record.getMessage()
    assert len(plain_traceback(exc).encode()) < 20_000


def test_structlog_may_be_configured_after_the_import() -> None:
    late = get_logger("letta.late")
    with structlog.testing.capture_logs() as found:
        late.info("thing.started")
    assert [line["event"] for line in found] == ["thing.started"]


def endless() -> None:
    endless()


def chained(length: int) -> BaseException:
    newest: BaseException = ValueError("first")
    for n in range(length):
        following = ValueError(n)
        following.__cause__ = newest
        newest = following
    return newest


def test_a_huge_traceback_is_cut_and_quick() -> None:
    try:
        endless()
    except RecursionError as exc:
        recursion = exc
    for huge in (recursion, chained(100_000), ValueError("x" * 10_000_000)):
        times = []
        for _ in range(3):  # a collection of the whole test process's garbage takes as long
            start = time.thread_time()
            text = plain_traceback(huge)
            times.append(time.thread_time() - start)
        assert min(times) < 0.2
        assert len(text) < 17_000
        assert type(huge).__name__ in text
