"""Ctrl-C ends every command with 130 and without a traceback, also while it imports."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from letta_redis import command
from worker.cli.commands import main
from worker.demo import serving

pytestmark = pytest.mark.unit


class Interrupting(MetaPathFinder):
    """A terminal's Ctrl-C at the import of a module."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "letta_redis.worker.cli":
            raise KeyboardInterrupt


def test_an_interrupt_during_the_imports_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("letta_redis.worker", "letta_redis.worker.cli"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 130


def test_an_interrupt_of_a_command_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_work: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.dead.with_queue", interrupted)
    done = CliRunner().invoke(main, ["dead", "list"])
    assert (done.exit_code, done.output) == (130, "")


def test_a_server_of_the_demo_ends_quietly_without_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: object) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    serving.serve(lambda *_: gone())
