"""A command whose packages are not installed says what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from worker.cli import main

pytestmark = pytest.mark.unit


class Commands(ModuleType):
    """The commands, where a package is missing."""

    missing = ""

    def main(self) -> None:
        raise ModuleNotFoundError(f"No module named {self.missing!r}", name=self.missing)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands("worker.cli.commands")
    monkeypatch.setitem(sys.modules, "worker.cli.commands", found)
    monkeypatch.setattr(sys, "argv", ["letta-workers", "demo"])
    return found


@pytest.mark.parametrize(
    ("missing", "extras"),
    [
        ("click", "worker"),
        ("structlog", "worker"),
        ("httpx_aiohttp", "worker"),
        ("starlette.applications", "embedded,web,worker"),
    ],
)
def test_a_missing_package_names_its_extra(
    commands: Commands, missing: str, extras: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.missing = missing

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"letta-workers needs the package {missing.partition('.')[0]},")
    assert line.endswith(f": pip install 'letta-redis[{extras}]'")


@pytest.mark.parametrize("missing", ["worker.cli.nosuch", "click_something"])
def test_a_package_of_no_extra_is_a_bug_and_raised(commands: Commands, missing: str) -> None:
    commands.missing = missing

    with pytest.raises(ModuleNotFoundError):
        main()
