"""compose/: without a password a server answers only its probe, and with one it does only what is needed."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ResponseError

import cache
from cache import Cache, admin, open_cache
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.scripts import commands_of
from settings import load_settings
from tests.support.compose import COMPOSE, load, made_secrets, run, server_of, services
from tests.support.engine import burst
from tests.support.queues import open_queue, stores_of
from worker.queue.rights import COMMANDS

pytestmark = pytest.mark.acceptance

USERS = "valkey-queue-users.conf"
PASSWORDS = {"queue": "letta_redis_password", "cache": "letta_cache_redis_password"}
KEYS = {"queue": "arq:job:x", "cache": "lc:x"}
# Not called dangerous by the server, but nothing that a client or worker needs.
NEEDLESS = {
    "dbsize", "randomkey", "fcall", "fcall_ro", "script|flush", "script|kill", "lolwut",
    *(f"function|{name}" for name in ("delete", "dump", "flush", "help", "kill", "list", "load", "stats")),
}  # fmt: skip


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return made_secrets(tmp_path)


def test_the_secrets_are_the_owners_and_made_once(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "valkey_operator_password").stat().st_mode) == 0o600
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    passwords = [text for name, text in before.items() if not name.endswith(".conf")]
    assert {len(password) for password in passwords} == {64}
    assert len(set(passwords)) == 6
    again = run([str(secrets.parent / "make_secrets.sh")])
    assert "already" in again.stdout
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    for password in passwords:
        users = "".join(text for name, text in before.items() if name.endswith(".conf"))
        assert password not in users + again.stdout + again.stderr


@pytest.mark.parametrize("server", PASSWORDS)
def test_an_older_releases_users_are_replaced_their_passwords_kept(
    secrets: Path, server: str
) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    (secrets / f"valkey-{server}-users.conf").write_text("user operator on nopass ~* -@all +ping\n")
    assert run([str(secrets.parent / "make_secrets.sh")]).returncode == 0
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


def test_secrets_of_before_the_caches_password_get_one(secrets: Path) -> None:
    password = (secrets / "letta_redis_password").read_text()
    for name in (PASSWORDS["cache"], "valkey-cache-users.conf"):
        (secrets / name).unlink()
    assert run([str(secrets.parent / "make_secrets.sh")]).returncode == 0
    assert len((secrets / PASSWORDS["cache"]).read_text()) == 64
    assert (secrets / "letta_redis_password").read_text() == password


def test_each_service_gets_only_the_secret_that_it_needs() -> None:
    given = {name: service.get("secrets", []) for name, service in services().items()}
    assert given == {
        "valkey-queue": ["valkey-queue-users.conf"],
        "valkey-cache": ["valkey-cache-users.conf"],
        "valkey-letta": [],
        "letta": list(PASSWORDS.values()),
        "letta-workers": list(PASSWORDS.values()),
        "letta-web": [*PASSWORDS.values(), "letta_web_token", "letta_web_read_token"],
        "prometheus": ["letta_web_read_token"],
        "grafana": ["grafana_password"],
    }
    files = {name: secret["file"] for name, secret in load()["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in files}
    assert set(files) == {name for names in given.values() for name in names}
    ignored = (COMPOSE.parent / ".gitignore").read_text().splitlines()
    assert "/compose/secrets/" in ignored


@pytest.mark.parametrize("server", PASSWORDS)
async def test_without_the_password_a_server_only_answers_the_probe(
    tmp_path: Path, secrets: Path, server: str
) -> None:
    key = KEYS[server]
    commands: list[tuple[Any, ...]] = [
        ("SET", key, "1"), ("GET", key), ("ZADD", "arq:queue", 1, "x"),
        ("EVAL", f"return redis.call('GET', '{key}')", 0), ("KEYS", "*"), ("SCAN", 0),
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("INFO",), ("SHUTDOWN",),
        ("SUBSCRIBE", "arq:llm:answered"), ("PUBLISH", "arq:llm:answered", "x"), ("MONITOR",),
        ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"), ("REPLICAOF", "a", 1),
        ("CLIENT", "KILL", "ID", 1), ("CLIENT", "LIST"), ("COPY", "a", key),
    ]  # fmt: skip
    once = PoolOptions(retries=0)
    with server_of(server, tmp_path, secrets) as port:
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


@pytest.mark.parametrize("server", PASSWORDS)
async def test_clients_may_run_what_is_documented_and_little_of_that(
    tmp_path: Path, secrets: Path, server: str
) -> None:
    """Every command of the server is tried against the user's file."""
    text = (COMPOSE.parent / "SECURITY.md").read_text()
    (documented,) = re.findall(rf"`(resetchannels [&~]{KEYS[server][:2]}[^`]+)`", text)
    with server_of(server, tmp_path, secrets) as port:
        async with open_pool(login(server, port, secrets), PoolOptions(retries=0), name="t") as it:
            for command in [("SET", "other", "1"), ("CONFIG", "GET", "*"), ("KEYS", "*")]:
                with pytest.raises(ResponseError, match="permissions"):
                    await it.execute_command(*command)
        async with open_pool(operator(port, secrets), PoolOptions(), name="t") as client:
            await client.execute_command("ACL", "SETUSER", "documented", "on", *documented.split())
            every = await commands_of_server(client)
            given, allowed = [
                await may_run(client, user, every) for user in ("letta-redis", "documented")
            ]
            hears = ("ACL", "DRYRUN", "letta-redis", "SUBSCRIBE", "__redis__:invalidate")
            may_hear = await client.execute_command(*hears) == b"OK"
            dangerous = set(
                map(bytes.decode, await client.execute_command("ACL", "CAT", "dangerous"))
            )
    assert given <= allowed
    assert given & dangerous == {"info"}
    assert given & NEEDLESS == {"fcall", "fcall_ro", "lolwut"}  # no functions can be loaded
    assert ("scan" in given) is (server == "cache")
    assert may_hear is (server == "queue")  # workers listen to client tracking
    needed = {name.lower() for name in COMMANDS} if server == "queue" else used_by_the_cache()
    assert needed <= given


async def commands_of_server(client: Any) -> dict[str, int]:
    """The arity of every command and subcommand (`client|list`)."""
    found: dict[str, int] = {}
    for name, row in (await client.execute_command("COMMAND")).items():
        nested = row["subcommands"]
        found |= {bytes(each[0]).decode(): int(each[1]) for each in nested}
        if not nested:
            found[name] = int(row["arity"])
    return found


async def may_run(client: Any, user: str, arities: Mapping[str, int]) -> set[str]:
    """The commands that a user may run, if on its own keys and channels only."""
    async with client.pipeline(transaction=False) as pipe:
        for name, arity in arities.items():
            words = name.split("|")
            pipe.execute_command("ACL", "DRYRUN", user, *words, *["1"] * (abs(arity) - len(words)))
        replies = await pipe.execute(raise_on_error=False)
    assert not [reply for reply in replies if isinstance(reply, Exception)]
    return {name for name, said in zip(arities, replies, strict=True) if b"to run the" not in said}


def used_by_the_cache() -> set[str]:
    """The commands of the cache's scripts, and what their callers send themselves."""
    scripts = Path(cache.__file__ or "").parent.rglob("lua/*.lua")
    names = {name for path in scripts for name in commands_of(path.read_text())}
    return {name.lower() for name in names} | {"evalsha", "eval", "get", "info", "scan", "xread"}


async def test_the_disabled_default_user_may_read_the_file_back(
    tmp_path: Path, secrets: Path
) -> None:
    """Valkey 8.1 and others replay transactions with its rights, and drop what they forbid."""
    users = (secrets / USERS).read_text().splitlines()
    (default,) = (line.split() for line in users if line.startswith("user default"))
    assert default == ["user", "default", "off", "resetpass", "~*", "&*", "+@all"]
    with server_of("queue", tmp_path, secrets) as port:
        async with open_pool(login("queue", port, secrets), PoolOptions(), name="t") as client:
            await client.eval("redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[2], 1)",
                              2, "arq:a", "arq:b")  # fmt: skip
    with server_of("queue", tmp_path, secrets) as port:
        async with open_pool(login("queue", port, secrets), PoolOptions(), name="t") as client:
            assert await client.exists("arq:a", "arq:b") == 2


def login(server: str, port: int, secrets: Path) -> str:
    password = (secrets / PASSWORDS[server]).read_text().strip()
    return f"redis://letta-redis:{password}@127.0.0.1:{port}/0"


def operator(port: int, secrets: Path) -> str:
    password = (secrets / "valkey_operator_password").read_text().strip()
    return f"redis://operator:{password}@127.0.0.1:{port}/0"


async def test_queue_and_cache_work_with_the_passwords_of_the_secrets(
    tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def add(ctx: dict[str, Any], one: int) -> int:
        return one + 1

    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    with (
        server_of("queue", tmp_path, secrets) as queue_port,
        server_of("cache", tmp_path, secrets) as cache_port,
    ):
        given = {
            "redis_url": f"redis://127.0.0.1:{queue_port}/0",
            "redis_username": "letta-redis",
            "cache_redis_url": f"redis://127.0.0.1:{cache_port}/0",
            "cache_redis_username": "letta-redis",
        }
        async with open_queue(load_settings(**given)) as queue:
            job = await queue.enqueue("add", 1)
            await burst(stores_of(queue).client, "arq:", [func(add, name="add")])
            assert await job.result(timeout_s=10) == 2
        async with open_cache(load_settings(**given)) as opened:
            await work_with(opened)
        for server, port in (("queue", queue_port), ("cache", cache_port)):
            async with open_pool(operator(port, secrets), PoolOptions(), name="t") as client:
                # Nothing was denied, not even what its caller would have done without.
                log = await client.execute_command("ACL", "LOG")
                assert not log, (server, [row[8:10] for row in log])
        (secrets / PASSWORDS["cache"]).write_text("another")
        wrong = load_settings(**given).cache_redis_url
        assert wrong
        async with open_pool(wrong, PoolOptions(retries=0), name="t") as client:
            with pytest.raises(AuthenticationError):
                await client.ping()


async def work_with(opened: Cache) -> None:
    """Make the cache's calls. Each is a miss where the server refuses a command."""
    await opened.agents.set("a", {"n": 1})
    assert await opened.agents.get_many(["a", "b"]) == {"a": {"n": 1}}
    assert await opened.agents.invalidate("a")
    assert await opened.agents.get("a") is None
    first = {"id": "m1", "sequence_id": 1}
    assert await opened.messages.get_or_load("a", none_yet) == []
    assert await opened.messages.append("a", [first], after=None)
    assert await opened.messages.list("a", limit=1) == [first]
    async with opened.writing(agents=["a"]):
        pass
    assert await opened.agents.get_or_load("a", loaded) == {"n": 2}
    assert (await admin.stats(opened))["keys"]


async def none_yet() -> list[Any]:
    return []


async def loaded() -> dict[str, int]:
    return {"n": 2}


async def test_without_its_secrets_a_server_takes_nobody_from_outside(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses an address
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    for server in PASSWORDS:
        with server_of(server, tmp_path, tmp_path / "none", "--bind", "*") as port:
            url = f"redis://{own}:{port}/0"
            async with open_pool(url, PoolOptions(retries=0), name="t") as client:
                with pytest.raises(Exception, match=r"(?i)protected|denied|closed"):
                    await client.ping()
