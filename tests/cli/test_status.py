"""`letta-workers status --watch`: on a terminal, in a pipe, past a failed reading, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from worker.cli.commands import main
from worker.errors import QueueUnavailable

LETTA = str(Path(sys.executable).with_name("letta-workers"))
COLUMNS = ("queued", "deferred", "running", "paused", "parked", "dead", "oldest_age_s")
COUNTS = {"default": dict.fromkeys(COLUMNS, 7)}


class Readings:
    """A queue that answers in turn, until somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self._left: list[Any] = [COUNTS, QueueUnavailable("it is\x1b[2J away"), COUNTS]

    async def stats(self) -> Any:
        found = self._left.pop(0) if self._left else KeyboardInterrupt()
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def with_queue(work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(work(Readings()))

    def watch(*options: str) -> str:
        monkeypatch.setattr("worker.cli.status.with_queue", with_queue)
        done = CliRunner().invoke(main, ["status", "--watch", "--every", "0.1", *options])
        assert done.exit_code == 130
        return done.output

    return watch


@pytest.mark.unit
def test_each_reading_is_one_line_of_json(watched: Callable[..., str]) -> None:
    lines = [json.loads(line) for line in watched("--json").splitlines()]
    error = {"kind": "QueueUnavailable", "message": "it is\x1b[2J away"}
    assert [line.get("counts") or line["error"] for line in lines] == [COUNTS, error, COUNTS]
    assert all(line["at"].endswith("+00:00") for line in lines)


@pytest.mark.unit
def test_a_pipe_gets_plain_lines(watched: Callable[..., str]) -> None:
    output = watched()
    assert output.count("default") == 2
    assert "error: it is\\x1b[2J away" in output
    assert "\x1b" not in output


@pytest.mark.integration
def test_a_terminal_is_drawn_in_place_and_left_as_it_was(private_valkey_url: str) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "LETTA_REDIS_URL": private_valkey_url, "TERM": "xterm"}
    command = [LETTA, "status", "--watch", "--every", "0.1"]
    started = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"critical") < 3:
            shown += os.read(ours, 65_536)
        started.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 65_536):
                shown += more
        except OSError:  # Linux: the other side has closed
            pass
        assert started.wait(60) == 130
    finally:
        started.kill()
        os.close(ours)
    assert b"\x1b[1A" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert b"Traceback" not in shown
