"""Every command says in one line, within seconds, why a server or an argument is refused."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.refusing import REMEDIES, refusing_servers
from tests.support.servers import raw_server, run, valkey
from worker.cli.commands import main

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent
# An attempt ends after 3 s. Without that end, a command takes from half a minute to forever.
LIMIT_S = 20
COMMANDS = [
    "status", "health", "dead list", "dead retry --since 1h", "webhooks list", "webhooks show m",
    "webhooks ping https://example.com/", "webhooks replay --since 1h", "batches list",
    "batches flush", "cache stats", "cache invalidate a",
]  # fmt: skip


def letta(command: str, url: str = "redis://127.0.0.1:1/0") -> Result:
    start = time.monotonic()
    done = CliRunner().invoke(main, command.split(), env={"LETTA_REDIS_URL": url})
    assert time.monotonic() - start < LIMIT_S, command
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


async def test_every_command_passes_on_a_refusal_in_one_line(
    valkey_url: str, tmp_path: Path
) -> None:
    async with refusing_servers(tmp_path, valkey_url.removeprefix("unix://")) as urls:
        for name in ("no password", "user without rights", "HTTP", "loading"):
            for command in COMMANDS:
                # In a thread: the servers run on this event loop.
                done = await asyncio.to_thread(letta, command, urls[name])
                assert (done.exit_code, done.stdout) == (1, ""), command
                assert len(done.stderr.splitlines()) == 1, done.stderr
                assert REMEDIES[name] in done.stderr


async def test_with_json_a_refusal_is_json_on_standard_output(
    valkey_url: str, tmp_path: Path
) -> None:
    async with refusing_servers(tmp_path, valkey_url.removeprefix("unix://")) as urls:
        for command in COMMANDS:
            done = await asyncio.to_thread(letta, f"{command} --json", urls["no password"])
            found = json.loads(done.stdout)
            assert (done.exit_code, done.stderr) == (1, "")
            if command == "health":
                assert (found["healthy"], found["workers"]) == (False, None)
                assert "LETTA_REDIS_PASSWORD" in found["redis"]
            else:
                assert found["error"]["kind"] == "RedisRefused"
                assert "LETTA_REDIS_PASSWORD" in found["error"]["message"]


async def test_a_server_without_an_answer_stops_no_command() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    async with raw_server(silent) as port:
        for command in ("health", "cache invalidate a"):
            done = await asyncio.to_thread(letta, command, f"redis://127.0.0.1:{port}/0")
            assert done.exit_code == 1
            assert "no answer in time" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("dead retry", "--since"),
        ("dead retry j --since 1h", "--since"),
        ("dead purge", "--before"),
        ("webhooks replay", "--since"),
        ("webhooks enable", "--endpoint-id"),
        ("webhooks disable https://a.example/ --endpoint-id e", "--endpoint-id"),
        ("webhooks endpoint", "--endpoint-id"),
        ("batches cancel", "--request"),
        ("cache invalidate", "--all"),
        ("dead list --limit none", "--limit"),
        ("no-such-command", "no-such-command"),
    ],
)
def test_wrong_arguments_exit_with_2_before_a_server_is_asked(command: str, words: str) -> None:
    done = letta(command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    done = letta(f"{command} --json")
    assert (done.exit_code, done.stderr) == (2, "")
    assert words in json.loads(done.stdout)["error"]["message"]


def test_a_wrong_setting_is_json_for_a_program() -> None:
    done = CliRunner().invoke(main, ["status", "--json"], env={"LETTA_WORKER_COUNT": "many"})
    assert done.exit_code == 2
    assert "LETTA_WORKER_COUNT" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("command", "server", "words", "code"),
    [
        ("letta-workers run --count 1", "--requirepass x", "LETTA_REDIS_PASSWORD", 2),
        ("arq worker.WorkerSettings", "--maxmemory-policy allkeys-lru", "noeviction", 2),
        ("arq --check worker.WorkerSettings", "--requirepass x", "LETTA_REDIS_PASSWORD", 1),
    ],
)
def test_a_worker_ends_at_once_if_waiting_does_not_help(
    tmp_path: Path, command: str, server: str, words: str, code: int
) -> None:
    program, *arguments = command.split()
    with valkey(tmp_path, *server.split()) as port:
        env = {
            **os.environ,
            "LETTA_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "LETTA_WORKER_LOG_LEVEL": "ERROR",
        }
        done = run([str(BIN / program), *arguments], env=env)
    (line,) = done.stderr.splitlines()
    assert words in line
    assert done.returncode == code
