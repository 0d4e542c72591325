"""`letta-workers web`, and the same beside `run`: what it serves, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from click.testing import CliRunner

from tests.support.wait import eventually_sync
from worker.cli.commands import main
from worker.process.companion import Companion

pytestmark = pytest.mark.acceptance

TOKEN = "a-token-of-the-test"


class Command:
    """A command in the background, with JSON logs in a file."""

    def __init__(self, log: Path, url: str, *words: str) -> None:
        self.log = log
        here = {"LETTA_REDIS_URL": url, "LETTA_WEB_LISTEN": "127.0.0.1:0", "LETTA_WEB_TOKEN": TOKEN}
        here |= {"LETTA_WORKER_LOG_FORMAT": "json"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "letta_redis.worker", *words],
                env={**os.environ, **here},
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def event(self, name: str) -> dict[str, Any] | None:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return next((each for each in found if each.get("event") == name), None)

    def site(self) -> str:
        started = eventually_sync(lambda: self.event("web.started"), deadline_s=60)
        assert started is not None
        return f"http://{started['address']}"


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


def is_closed(site: str) -> bool:
    try:
        httpx.get(f"{site}/healthz", timeout=5)
    except httpx.TransportError:
        return True
    return False


def test_beside_run_it_is_ready_with_the_workers_and_ends_with_them(
    private_valkey_url: str, tmp_path: Path, commands: list[Command]
) -> None:
    running = Command(tmp_path / "log", private_valkey_url, "run", "--count", "1")
    commands.append(running)
    site = running.site()

    def ready() -> bool:
        return httpx.get(f"{site}/readyz", timeout=30).status_code == 200

    eventually_sync(ready, deadline_s=60)
    assert httpx.get(f"{site}/metrics", timeout=30).status_code == 401
    metrics = httpx.get(f"{site}/metrics", timeout=30, headers={"authorization": f"Bearer {TOKEN}"})
    assert 'letta_workers{state="working"} 1.0' in metrics.text
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()
    eventually_sync(lambda: is_closed(site), deadline_s=30)
    assert TOKEN not in running.log.read_text()


def test_alone_it_ends_with_0_at_term(
    private_valkey_url: str, tmp_path: Path, commands: list[Command]
) -> None:
    web = Command(tmp_path / "log", private_valkey_url, "web")
    commands.append(web)
    site = web.site()
    assert httpx.get(f"{site}/readyz", timeout=30).json() == {"ready": True, "problems": []}
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(60) == 0, web.log.read_text()
    assert web.event("web.stopped")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("0.0.0.0:0", "other machines may reach 0.0.0.0:0; set LETTA_WEB_TOKEN"),
        ("nowhere", "'nowhere' is not an address; accepted: host:port"),
    ],
)
@pytest.mark.parametrize("words", [["web"], ["run"]], ids=["web", "run"])
def test_an_address_that_is_not_safe_is_refused(
    words: list[str], address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_WEB_LISTEN", address)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert f"LETTA_WEB_LISTEN: {message}" in done.output


def test_an_address_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = CliRunner().invoke(main, ["web", "--listen", address])
    assert done.exit_code == 2
    assert f"cannot listen on {address}" in done.output


def test_a_companion_is_restarted_and_ends_with_its_owner(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    # The first one ends at once, the second one when its standard input closes.
    code = (
        "import os, pathlib, sys\n"
        f"path = pathlib.Path({str(starts)!r})\n"
        "first = not path.exists()\n"
        "with path.open('a') as file:\n    file.write(f'{os.getpid()}\\n')\n"
        "first or sys.stdin.read()\n"
    )

    def pids() -> list[int]:
        return [int(line) for line in starts.read_text().split()] if starts.exists() else []

    with structlog.testing.capture_logs() as logs, Companion([sys.executable, "-c", code]):
        eventually_sync(lambda: len(pids()) == 2, deadline_s=60)
        os.kill(pids()[1], 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pids()[1], 0)
    (ended,) = [line for line in logs if line["event"] == "companion.ended"]
    assert (ended["pid"], ended["exit_code"]) == (pids()[0], 0)
