"""The light way of `letta-workers health`: what it answers, and what it leaves to the command."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from click.testing import CliRunner

from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from tests.support.refusing import REMEDIES, refusing_servers
from tests.support.sentinels import shared_sentinel
from tests.support.servers import raw_server, tls_in_front, valkey
from worker.cli import probe
from worker.cli.commands import main
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration

HEARTBEAT = {"worker_id": "w1\x1b[2J", "host": socket.gethostname(), "pid": 7}
ELSEWHERE = {"worker_id": "w2", "host": "another", "pid": 7}
PASSWORD = "pass word@:/#"


def answer(arguments: list[str]) -> str | None:
    """The text of a good answer; None if the probe gives another one, or none."""
    found = probe.answer(arguments)
    return found.text if found is not None and found.code == 0 else None


async def alive(url: str) -> None:
    """Write the heartbeat of a worker, and the name of one that has ended."""
    keys = QueueKeys()
    async with open_pool(url, PoolOptions(), name="test") as client:
        await client.zadd(keys.workers, {"w1": 1, "w0": 2})
        await client.set(keys.worker("w1"), json.dumps(HEARTBEAT))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without `.env`."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def test_it_reports_live_workers_as_text_and_json(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    assert answer([]) is None
    await alive(private_valkey_url)

    assert answer([]) == "redis: ok\nworkers: w1\\x1b[2J"
    assert json.loads(answer(["--json"]) or "") == {
        "healthy": True,
        "redis": "ok",
        "host": socket.gethostname(),
        "workers": [HEARTBEAT],
        "elsewhere": 0,
    }
    assert answer(["--help"]) is None


async def test_it_counts_this_machines_workers_unless_told_otherwise(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    keys = QueueKeys()
    async with open_pool(private_valkey_url, PoolOptions(), name="test") as client:
        await client.zadd(keys.workers, {"w2": 1})
        await client.set(keys.worker("w2"), json.dumps(ELSEWHERE))

    assert answer([]) is None
    assert answer(["--any"]) == "redis: ok\nworkers: w2"
    command = await asyncio.to_thread(CliRunner().invoke, main, ["health"])
    assert command.exit_code == 1
    assert "elsewhere: 1 (--any counts them)" in command.stdout
    await alive(private_valkey_url)
    assert answer([]) == "redis: ok\nworkers: w1\\x1b[2J\nelsewhere: 1 (--any counts them)"


async def test_it_reads_the_settings_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    with valkey(tmp_path / "server", "--requirepass", PASSWORD) as port:
        await alive(f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/3")
        monkeypatch.setenv("letta_redis_url", f"redis://127.0.0.1:{port}/3")
        assert answer([]) is None  # no password

        (secrets / "letta_redis_password").write_text(PASSWORD + "\n")
        assert answer([])
        monkeypatch.setenv("LETTA_REDIS_PASSWORD", "wrong")
        assert answer([]) is None
        monkeypatch.setenv("LETTA_REDIS_PASSWORD", "")
        monkeypatch.setenv("LETTA_REDIS_USERNAME", "default")
        assert answer([])
        monkeypatch.setenv("letta_redis_url", f"redis://:wrong@127.0.0.1:{port}/3")
        assert answer([]) is None
        monkeypatch.setenv("letta_redis_url", "")
        (secrets / "LETTA_REDIS_URL").write_text(f"redis://127.0.0.1:{port}/3")
        assert answer([])


async def test_it_reads_an_env_file_between_variables_and_secrets(
    private_valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    await alive(private_valkey_url)
    secrets, file = tmp_path / "secrets", elsewhere / ".env"
    secrets.mkdir()
    (secrets / "letta_redis_url").write_text("redis://127.0.0.1:1/0")
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    assert answer([]) is None
    monkeypatch.setenv("WHERE", private_valkey_url)
    for text in (
        f"LETTA_REDIS_URL={private_valkey_url}",
        f"export letta_redis_url = '{private_valkey_url}'  # ours\r\n",
        "OTHER\nLETTA_REDIS_URL=${WHERE}",
    ):
        file.write_text(text)
        assert answer([]) == "redis: ok\nworkers: w1\\x1b[2J", text

    monkeypatch.setenv("LETTA_REDIS_URL", "redis://127.0.0.1:1/0")
    assert answer([]) is None
    monkeypatch.setenv("LETTA_REDIS_URL", "")
    file.write_text("LETTA_REDIS_URL=\n")  # an empty one counts as absent
    assert answer([]) is None


@pytest.mark.parametrize("fault", ["writable", "link", "directory", "latin-1"])
def test_an_env_file_that_may_not_count_is_left_to_the_settings(
    fault: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", valkey_url)
    file = elsewhere / ".env"
    assert probe.answer([]) is not None
    if fault == "link":
        file.symlink_to(tmp_path / "env")
    elif fault == "directory":
        file.mkdir()
    else:
        file.write_bytes(b"LETTA_WEB_TOKEN=caf\xe9\n")
        file.chmod(0o666 if fault == "writable" else 0o600)

    assert probe.answer([]) is None


async def test_it_joins_an_embedded_server_but_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"embedded://{tmp_path}/data"
    monkeypatch.setenv("LETTA_REDIS_URL", url)

    def outcome() -> str:
        found = probe.answer([])
        assert found is not None
        return found.text

    assert "no process runs it" in outcome()
    assert not (tmp_path / "data").exists()
    server = embedded.acquire(url)
    try:
        assert "none alive" in outcome()
        await alive(server)
        assert outcome() == "redis: ok\nworkers: w1\\x1b[2J"
        (tmp_path / "data" / "link").symlink_to(tmp_path)
        assert probe.answer([]) is None  # the command says why it is not trusted
        (tmp_path / "data" / "link").unlink()
    finally:
        embedded.release(url)
    assert "no process runs it" in outcome()
    for alone in ("embedded://", "embedded:///", "embedded+cluster://"):
        monkeypatch.setenv("LETTA_REDIS_URL", alone)
        assert "only the process that started it can reach it" in outcome()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1:1/mymaster",
        "http://127.0.0.1",
        "redis://127.0.0.1:port/0",
    ],
)
def test_it_leaves_what_it_cannot_ask_to_the_command(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", url)

    assert probe.answer([]) is None


async def test_it_says_why_a_server_refuses_as_the_command_does(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with refusing_servers(tmp_path, valkey_url.removeprefix("unix://")) as urls:
        for name, remedy in REMEDIES.items():
            monkeypatch.setenv("LETTA_REDIS_URL", urls[name])
            # In a thread: the servers run on this event loop.
            found = await asyncio.to_thread(probe.answer, [])
            if name == "no Sentinel":
                assert found is None
                continue
            assert found is not None, name
            assert (found.code, found.is_error) == (1, True), found.text
            assert len(found.text.splitlines()) == 1
            assert remedy in found.text
            assert "unknown whether workers are alive" in found.text
            assert not {"hunter2", "sesame"} & set(found.text.split())
            report = json.loads((await asyncio.to_thread(probe.answer, ["--json"])).text)  # type: ignore[union-attr]
            assert (report["healthy"], report["workers"]) == (False, None)
            assert remedy in report["redis"]


async def test_it_says_that_a_server_is_away_or_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    monkeypatch.setattr(probe, "_TIMEOUT_S", 0.2)
    async with raw_server(silent) as port:
        for url, words in (
            (f"redis://127.0.0.1:{port}/0", "no answer in time"),
            (f"rediss://127.0.0.1:{port}/0", "no answer in time; if it does not speak TLS"),
            ("redis://127.0.0.1:1/0", "Connection refused; check that the server runs"),
            ("redis+cluster://127.0.0.1:1,127.0.0.1:2", "Connection refused"),
            (f"unix://{tmp_path}/none", "No such file"),
        ):
            monkeypatch.setenv("LETTA_REDIS_URL", url)
            found = await asyncio.to_thread(probe.answer, [])
            assert found is not None
            assert (found.code, found.is_error) == (1, True)
            assert words in found.text


async def test_it_follows_a_cluster_to_the_node_of_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(65_536):
            for name in (b"SLOTS", b"ZRANGE", b"MGET"):
                if name in command:
                    writer.write(replies[name].pop(0))

    heartbeat = json.dumps(HEARTBEAT).encode()
    async with raw_server(node) as port:
        replies = {
            b"SLOTS": [b"*0\r\n"] * 2,
            b"ZRANGE": [b"-MOVED 7 :%d\r\n" % port, b"*1\r\n$2\r\nw1\r\n"],
            b"MGET": [b"*1\r\n$%d\r\n%s\r\n" % (len(heartbeat), heartbeat)],
        }
        # The first node is away.
        monkeypatch.setenv("LETTA_REDIS_URL", f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}")
        assert await asyncio.to_thread(answer, []) == "redis: ok\nworkers: w1\\x1b[2J"
        assert not any(replies.values())
        # It moves on all the time.
        replies[b"SLOTS"] = [b"*0\r\n"] * 2
        replies[b"ZRANGE"] = [b"-MOVED 7 :%d\r\n" % port] * 2
        found = await asyncio.to_thread(probe.answer, [])
        assert found is not None
        assert "is moving the queue's slot" in found.text


async def test_it_asks_a_sentinel_for_the_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared_sentinel(tmp_path) as url:
        monkeypatch.setenv("LETTA_REDIS_URL", url)
        found = probe.answer([])
        assert found is not None
        assert "none alive" in found.text
        await alive(url)
        assert answer([])
        monkeypatch.setenv("LETTA_REDIS_URL", url.replace("/mine", "/other"))
        assert probe.answer([]) is None


async def test_the_newest_configuration_of_all_sentinels_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_SENTINEL_TIMEOUT_S", 0.2)
    monkeypatch.setenv("LETTA_REDIS_SENTINEL_PASSWORD", "sesame")
    with valkey(tmp_path / "old") as old, valkey(tmp_path / "new") as new:
        await alive(f"redis://127.0.0.1:{new}/0")
        states = {
            "stale": (old, 1, "master"),
            "newest": (new, 2, "master"),
            "down": (old, 3, "master,o_down"),
        }
        async with AsyncExitStack() as stack:
            servers = [raw_server(_sentinel(*state)) for state in states.values()]
            ports = [1] + [await stack.enter_async_context(server) for server in servers]
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            monkeypatch.setenv("LETTA_REDIS_URL", f"redis+sentinel://{hosts}/mine")
            assert await asyncio.to_thread(answer, []) == "redis: ok\nworkers: w1\\x1b[2J"


def _sentinel(port: int, epoch: int, flags: str) -> Callable[..., Coroutine[Any, Any, None]]:
    fields = ["ip", "127.0.0.1", "port", port, "flags", flags, "config-epoch", epoch]
    state = b"*%d\r\n" % len(fields)
    state += b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in map(_bytes, fields))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(65_536):
            is_login = b"AUTH" in command
            assert not is_login or b"sesame" in command
            writer.write(b"+OK\r\n" if is_login else state)

    return serve


def _bytes(value: object) -> bytes:
    return str(value).encode()


@pytest.mark.parametrize("options", ["--maxmemory 1", "--replicaof 127.0.0.1 1"])
def test_a_server_that_only_reads_is_asked_all_the_same(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with valkey(tmp_path / "server", *options.split()) as port:
        monkeypatch.setenv("LETTA_REDIS_URL", f"redis://127.0.0.1:{port}/0")
        found = probe.answer([])
    assert found is not None
    assert (found.code, found.is_error) == (1, False)
    assert "none alive" in found.text


async def test_it_verifies_tls_as_the_command_does(
    private_valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alive(private_valkey_url)
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with tls_in_front(private_valkey_url.removeprefix("unix://"), context) as port:
        monkeypatch.setenv("LETTA_REDIS_URL", f"rediss://localhost:{port}/0")
        assert await asyncio.to_thread(answer, []) is None
        monkeypatch.setenv("LETTA_REDIS_CA_FILE", str(ca_file))
        assert await asyncio.to_thread(answer, [])
        monkeypatch.setenv("LETTA_REDIS_URL", f"rediss://127.0.0.1:{port}/0")
        assert await asyncio.to_thread(answer, []) is None
