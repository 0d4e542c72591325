"""compose/: who reaches the queue's port without its password can do nothing."""

from __future__ import annotations

import re
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ResponseError

from cache.connection.pool import PoolOptions, open_pool
from settings import load_settings
from tests.support.compose import COMPOSE, load, run, services
from tests.support.engine import burst
from tests.support.queues import open_queue, stores_of
from tests.support.servers import valkey

pytestmark = pytest.mark.acceptance

USERS = "valkey-queue-users.conf"


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
    assert stat.S_IMODE((secrets / "valkey_operator_password").stat().st_mode) == 0o600
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    passwords = [text.strip() for name, text in before.items() if name.endswith("_password")]
    assert {len(password) for password in passwords} == {64}
    assert len(set(passwords)) == 2
    again = run([str(secrets.parent / "make_secrets.sh")])
    assert "already" in again.stdout
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    for password in passwords:
        assert password not in before[USERS] + again.stdout + again.stderr


def test_users_of_an_older_release_are_replaced_and_the_password_kept(secrets: Path) -> None:
    password, users = (secrets / "letta_redis_password").read_text(), (secrets / USERS).read_text()
    (secrets / USERS).write_text("user default on nopass resetkeys ~sse:run:* -@all +ping\n")
    assert run([str(secrets.parent / "make_secrets.sh")]).returncode == 0
    assert (secrets / USERS).read_text() == users
    assert (secrets / "letta_redis_password").read_text() == password


def test_each_service_gets_only_the_secret_that_it_needs() -> None:
    given = {name: service.get("secrets", []) for name, service in services().items()}
    assert given == {
        "valkey-queue": ["valkey-queue-users.conf"],
        "valkey-cache": [],
        "valkey-letta": [],
        "letta": ["letta_redis_password"],
        "letta-workers": ["letta_redis_password"],
    }
    files = {name: secret["file"] for name, secret in load()["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in files}
    assert set(files) == {name for names in given.values() for name in names}
    ignored = (COMPOSE.parent / ".gitignore").read_text().splitlines()
    assert "/compose/secrets/" in ignored


async def test_without_the_password_the_queue_only_answers_the_probe(
    tmp_path: Path, secrets: Path
) -> None:
    commands: list[tuple[Any, ...]] = [
        ("SET", "arq:job:x", "1"), ("GET", "arq:job:x"), ("ZADD", "arq:queue", 1, "x"),
        ("EVAL", "return redis.call('GET', 'arq:job:x')", 0), ("KEYS", "*"), ("SCAN", 0),
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("INFO",), ("SHUTDOWN",),
        ("SUBSCRIBE", "arq:llm:answered"), ("PUBLISH", "arq:llm:answered", "x"), ("MONITOR",),
        ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"), ("REPLICAOF", "a", 1),
        ("CLIENT", "KILL", "ID", 1), ("CLIENT", "LIST"), ("COPY", "a", "arq:job:x"),
    ]  # fmt: skip
    once = PoolOptions(retries=0)
    with queue_server(tmp_path, secrets) as port:
        async with open_pool(f"redis://127.0.0.1:{port}/0", once, name="t") as client:
            for command in [("PING",), *commands]:
                with pytest.raises(AuthenticationError):
                    await client.execute_command(*command)
        # valkey-cli names neither itself nor its library, which the probe's user may not do.
        bare = {"lib_name": None, "lib_version": None}
        async with Redis(port=port, username="probe", password="none", **bare) as probe:
            assert await probe.execute_command("PING")
            for command in commands:
                with pytest.raises(ResponseError, match="permissions"):
                    await probe.execute_command(*command)


async def test_the_queues_user_has_the_rights_that_are_documented(
    tmp_path: Path, secrets: Path
) -> None:
    text = (COMPOSE.parent / "SECURITY.md").read_text()
    (documented,) = re.findall(r"`(resetchannels &arq:[^`]+)`", text)
    with queue_server(tmp_path, secrets) as port:
        async with open_pool(login(port, secrets), PoolOptions(retries=0), name="t") as client:
            for command in [("SET", "other", "1"), ("CONFIG", "GET", "*"), ("KEYS", "*")]:
                with pytest.raises(ResponseError, match="permissions"):
                    await client.execute_command(*command)
    granted = next(
        line for line in (secrets / USERS).read_text().splitlines() if "letta-redis" in line
    )
    assert set(documented.split()) <= set(granted.split())


async def test_the_disabled_default_user_may_read_the_file_back(
    tmp_path: Path, secrets: Path
) -> None:
    """Valkey 8.1 and others replay transactions with its rights, and drop what they forbid."""
    users = (secrets / USERS).read_text().splitlines()
    (default,) = (line.split() for line in users if line.startswith("user default"))
    assert default == ["user", "default", "off", "resetpass", "~*", "&*", "+@all"]
    with queue_server(tmp_path, secrets) as port:
        async with open_pool(login(port, secrets), PoolOptions(), name="t") as client:
            await client.eval("redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[2], 1)",
                              2, "arq:a", "arq:b")  # fmt: skip
    with queue_server(tmp_path, secrets) as port:
        async with open_pool(login(port, secrets), PoolOptions(), name="t") as client:
            assert await client.exists("arq:a", "arq:b") == 2


def login(port: int, secrets: Path) -> str:
    password = (secrets / "letta_redis_password").read_text().strip()
    return f"redis://letta-redis:{password}@127.0.0.1:{port}/0"


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
