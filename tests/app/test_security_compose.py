"""compose/: who reaches the queue's port without its password can do next to nothing."""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func
from redis.asyncio.lock import Lock
from redis.exceptions import AuthenticationError, ResponseError

from cache.connection.pool import PoolOptions, open_pool
from settings import load_settings
from tests.support.compose import COMPOSE, load, run, services
from tests.support.engine import burst
from tests.support.queues import open_queue, stores_of
from tests.support.servers import valkey

pytestmark = pytest.mark.acceptance


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What make_secrets.sh makes."""
    shutil.copy2(COMPOSE / "make_secrets.sh", tmp_path)
    made = run([str(tmp_path / "make_secrets.sh")])
    assert made.returncode == 0, made.stderr
    return tmp_path / "secrets"


@contextmanager
def queue_server(home: Path, secrets: Path, *options: str) -> Iterator[int]:
    """A server with the queue's configuration and the users of `secrets`."""
    conf = home / "valkey.conf"
    text = (COMPOSE / "valkey-queue.conf").read_text()
    assert "/run/secrets/" in text
    conf.write_text(text.replace("/run/secrets/", f"{secrets}/"))
    with valkey(home / "server", str(conf), *options) as port:
        yield port


def test_the_secrets_are_the_owners_and_made_once(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    password = (secrets / "letta_redis_password").read_text()
    assert len(password.strip()) == 64
    assert password.strip() not in (secrets / "valkey-queue-users.conf").read_text()
    again = run([str(secrets.parent / "make_secrets.sh")])
    assert "already" in again.stdout
    assert (secrets / "letta_redis_password").read_text() == password
    assert password.strip() not in again.stdout + again.stderr


def test_each_service_gets_only_the_secret_that_it_needs() -> None:
    given = {name: service.get("secrets", []) for name, service in services().items()}
    assert given == {
        "valkey-queue": ["valkey-queue-users.conf"],
        "valkey-cache": [],
        "letta": ["letta_redis_password"],
        "letta-workers": ["letta_redis_password"],
    }
    files = {name: secret["file"] for name, secret in load()["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in files}
    assert set(files) == {name for names in given.values() for name in names}
    ignored = (COMPOSE.parent / ".gitignore").read_text().splitlines()
    assert "/compose/secrets/" in ignored


async def test_without_the_password_only_lettas_own_keys_are_reached(
    tmp_path: Path, secrets: Path
) -> None:
    refused: list[tuple[Any, ...]] = [
        ("SET", "arq:job:x", "1"), ("GET", "arq:job:x"), ("ZADD", "arq:queue", 1, "x"),
        ("EVAL", "return redis.call('GET', 'arq:job:x')", 0), ("KEYS", "*"), ("SCAN", 0),
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("INFO",), ("SHUTDOWN",),
        ("SUBSCRIBE", "arq:llm:answered"), ("PUBLISH", "arq:llm:answered", "x"), ("MONITOR",),
        ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"), ("REPLICAOF", "a", 1),
        ("CLIENT", "KILL", "ID", 1), ("CLIENT", "LIST"), ("COPY", "sse:run:1", "arq:job:x"),
        ("RENAME", "sse:run:1", "arq:job:x"),
    ]  # fmt: skip
    with queue_server(tmp_path, secrets) as port:
        url = f"redis://127.0.0.1:{port}/0"
        async with open_pool(url, PoolOptions(retries=0), name="t") as client:
            assert await client.ping()
            for command in refused:
                with pytest.raises(ResponseError, match="permissions"):
                    await client.execute_command(*command)
            # What the Letta server does with its own client.
            async with Lock(client, "conversation:lock:c1", timeout=5):
                assert await client.get("conversation:lock:c1")
            await client.xadd("sse:run:r1", {"chunk": "x"}, maxlen=10)
            assert await client.xrange("sse:run:r1")
            assert await client.set("otid:run:o1", "r1", ex=5, nx=True)


async def test_the_queue_works_with_the_password_of_the_secrets_file(
    tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def add(ctx: dict[str, Any], one: int) -> int:
        return one + 1

    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    with queue_server(tmp_path, secrets) as port:
        url, user = f"redis://127.0.0.1:{port}/0", "letta-redis"
        async with open_queue(load_settings(redis_url=url, redis_username=user)) as queue:
            job = await queue.enqueue("add", 1)
            await burst(stores_of(queue).client, "arq:", [func(add, name="add")])
            assert await job.result(timeout_s=10) == 2
        (secrets / "letta_redis_password").write_text("another")
        wrong = load_settings(redis_url=url, redis_username=user).redis_url
        async with open_pool(wrong, PoolOptions(retries=0), name="t") as client:
            with pytest.raises(AuthenticationError):
                await client.ping()


async def test_without_its_secrets_the_queue_takes_nobody_from_outside(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses an address
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    with queue_server(tmp_path, tmp_path / "none", "--bind", "*") as port:
        async with open_pool(f"redis://{own}:{port}/0", PoolOptions(retries=0), name="t") as client:
            with pytest.raises(Exception, match=r"(?i)protected|denied|closed"):
                await client.ping()
