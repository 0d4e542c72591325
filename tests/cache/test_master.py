"""A pool behind Sentinels: a master that refuses, or that they name no more, is left."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hiredis
import pytest
import trustme
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import PoolOptions, close_client, open_pool
from cache.connection.protocol import Ended
from cache.connection.shared_scripts import ScriptRedis
from cache.connection.siblings import sibling
from tests.support.servers import raw_server
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

NAME, PASSWORD = "mine", "the-sentinels-own"
PATIENT = PoolOptions(connect_timeout_s=20, socket_timeout_s=20)
NO_TIMEOUT = PoolOptions(connect_timeout_s=300, socket_timeout_s=300)
ERRORS = ["READONLY a replica", "MASTERDOWN away", "NOREPLICAS too few"]


class Server:
    """A master, which refuses commands for as long as it has an `error`, and may be stopped."""

    def __init__(self) -> None:
        self.port = 0
        self.error = ""
        self.answered: list[bytes] = []
        self.refused = self.connections = self.blocked = 0
        self.runs = asyncio.Event()
        self.runs.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        self.connections += 1
        while data := await reader.read(65_536):
            await self.runs.wait()
            parser.feed(data)
            while (command := parser.gets()) is not False:
                if command[0] == b"BZPOPMIN":
                    self.blocked += 1
                else:
                    writer.write(self.reply(command).encode())
            await writer.drain()
        self.connections -= 1

    def reply(self, command: list[bytes]) -> str:
        if command[0] == b"INFO":
            return "$13\r\nrole:master\r\n\r\n"
        if command[0] not in {b"GET", b"EVALSHA"}:
            return "+OK\r\n"
        if self.error:
            self.refused += 1
            return f"-{self.error}\r\n"
        self.answered.append(command[0])
        return "+OK\r\n"


class Watcher(Server):
    """A Sentinel, which names a master to those who have logged in."""

    master: Server
    password = ""
    epoch, flags, asked = 1, "master", 0

    def reply(self, command: list[bytes]) -> str:
        if command[0] == b"AUTH":
            self.password = "" if command[1] == self.password.encode() else self.password
        elif self.password:
            return "-NOAUTH no\r\n"
        if command[0] != b"SENTINEL":
            return super().reply(command)
        self.asked += 1
        fields = ["name", NAME, "ip", "127.0.0.1", "port", str(self.master.port)]
        fields += ["flags", self.flags, "num-other-sentinels", "0"]
        fields += ["config-epoch", str(self.epoch)]
        words = "".join(f"${len(word)}\r\n{word}\r\n" for word in fields)
        return f"*1\r\n*{len(fields)}\r\n{words}"


@asynccontextmanager
async def watched(
    options: PoolOptions = PATIENT, certificate: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Watcher, Server, Server, Any]]:
    """A Sentinel that names the first of two masters, and a client."""
    servers = Watcher(), Server(), Server()
    async with AsyncExitStack() as stack:
        for server in servers:
            opened = raw_server(server.serve, certificate=certificate)
            server.port = await stack.enter_async_context(opened)
        servers[0].master = servers[1]
        scheme = "rediss" if certificate else "redis"
        url = f"{scheme}+sentinel://127.0.0.1:{servers[0].port}/{NAME}/0"
        client = await stack.enter_async_context(
            open_pool(url, options, name="t", client_class=ScriptRedis)
        )
        yield *servers, client


async def _hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        pass


async def _hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


CALLS = ["script", "pool"]


def call(client: Any, kind: str) -> Any:
    return client.evalsha("sha", 1, "a") if kind == "script" else client.get("a")


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda text: text.split()[0])
async def test_a_master_that_refuses_is_left_for_another(error: str, kind: str) -> None:
    async with watched() as (sentinel, old, new, client):
        await call(client, kind)
        old.error, sentinel.master = error, new
        assert await call(client, kind) == b"OK"
        assert (len(old.answered), old.refused, len(new.answered)) == (1, 1, 1)


async def test_a_master_is_left_by_tls_and_with_the_sentinels_password(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(context)
    options = replace(PATIENT, ca_file=tmp_path / "ca.pem", sentinel_password=PASSWORD)
    async with watched(options, context) as (sentinel, old, new, client):
        sentinel.password = PASSWORD
        other = sibling(client, name="second")
        for each in (client, other):
            await each.get("a")
        old.error, sentinel.master = "NOREPLICAS too few", new
        for each in (client, other):
            assert await each.get("a") == b"OK"
        await close_client(other)
        assert new.answered == [b"GET"] * 2


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda text: text.split()[0])
async def test_a_refusal_reaches_the_caller_if_no_other_master_is_named(
    error: str, kind: str
) -> None:
    async with watched() as (_, old, _, client):
        old.error = error
        with pytest.raises(Ended, match=error):
            await call(client, kind)
        assert old.refused == 1 + PoolOptions().retries
        old.error = ""
        assert await call(client, kind) == b"OK"


async def test_the_newest_configuration_counts() -> None:
    """A Sentinel that is cut off beside the former master goes on to name that one."""
    cut_off = Watcher()
    async with AsyncExitStack() as stack:
        sentinel, old, new, _ = await stack.enter_async_context(watched())
        cut_off.master = old
        ports = [
            await stack.enter_async_context(raw_server(serve))
            for serve in (cut_off.serve, _hang, _hang_up)
        ]
        nodes = ",".join(f"127.0.0.1:{port}" for port in [*ports, sentinel.port])
        # Nobody waits for the silent one until its timeout.
        options = PoolOptions(connect_timeout_s=300, socket_timeout_s=300)
        client = await stack.enter_async_context(
            open_pool(f"redis+sentinel://{nodes}/{NAME}/0", options, name="t")
        )
        async with asyncio.timeout(100):
            await client.get("a")
            old.error, sentinel.master, sentinel.epoch = "NOREPLICAS too few", new, 2
            assert await client.get("a") == b"OK"
        assert (len(old.answered), old.refused, len(new.answered)) == (1, 1, 1)


async def test_no_sentinel_that_names_a_master_is_an_outage() -> None:
    async with watched() as (sentinel, _, _, client):
        sentinel.flags = "master,o_down"
        with pytest.raises(RedisConnectionError, match="No master found"):
            await client.get("a")
        sentinel.flags = "master"
        assert await client.get("a") == b"OK"


async def test_other_refusals_of_a_master_are_answers() -> None:
    async with watched() as (_, old, _, client):
        old.error = "NOPERM no"
        for kind in CALLS:
            with pytest.raises(ResponseError):
                await call(client, kind)
        assert (old.refused, old.connections) == (2, 2)


async def test_every_connection_follows_to_a_new_master() -> None:
    """The blocked ones too, and those of the scripts."""
    async with watched() as (sentinel, old, new, client):
        await call(client, "script")
        blocked = asyncio.ensure_future(client.bzpopmin("a", 0))
        await eventually(lambda: _is(old.blocked == 1))
        await call(client, "pool")  # by a connection that is idle afterwards
        sentinel.master = new
        old.error = "READONLY a replica"
        await call(client, "pool")
        await eventually(lambda: _is(old.connections == 0))
        await call(client, "script")
        assert new.answered == [b"GET", b"EVALSHA"]
        blocked.cancel()  # it has failed, or blocks at the new one: that depends on redis-py
        await asyncio.gather(blocked, return_exceptions=True)


async def test_a_master_that_falls_silent_is_left_before_the_timeout() -> None:
    """With all its connections: the idle, the waiting, and the subscribed."""
    async with watched(NO_TIMEOUT) as (sentinel, old, new, client):
        subscribed = client.connection_pool.make_connection()
        await subscribed.connect()
        await call(client, "script")
        await call(client, "pool")
        old.runs.clear()
        script, pool = (asyncio.ensure_future(call(client, kind)) for kind in CALLS)
        asked = sentinel.asked
        await eventually(lambda: _is(sentinel.asked > asked + 1))  # they name it for a while
        sentinel.master = new
        async with asyncio.timeout(100):
            assert await script == b"OK"
            await asyncio.wait([pool])  # it has failed, or is sent again: that depends on redis-py
        old.runs.set()
        await eventually(lambda: _is(old.connections == 0))
        assert b"EVALSHA" in new.answered
        await asyncio.gather(pool, return_exceptions=True)
        await subscribed.disconnect()


@pytest.mark.parametrize("kind", CALLS)
async def test_a_client_is_not_kept_by_a_master_that_is_stopped(kind: str) -> None:
    """It accepts connections, and answers no login."""
    async with watched(NO_TIMEOUT) as (sentinel, old, new, client):
        old.runs.clear()
        waiting = asyncio.ensure_future(call(client, kind))
        await eventually(lambda: _is(sentinel.asked > 1))
        sentinel.master = new
        async with asyncio.timeout(100):
            assert await waiting == b"OK"


@pytest.mark.parametrize("kind", CALLS)
async def test_a_client_is_not_kept_in_a_handshake_of_tls(kind: str, tmp_path: Path) -> None:
    """A stopped master accepts connections. Until the handshake is done, none is there to abort."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(context)
    options = replace(NO_TIMEOUT, ca_file=tmp_path / "ca.pem")
    async with (
        watched(options, context) as (sentinel, old, new, client),
        raw_server(_hang) as old.port,
    ):
        waiting = asyncio.ensure_future(call(client, kind))
        await eventually(lambda: _is(sentinel.asked > 1))
        sentinel.master = new
        async with asyncio.timeout(30):  # asyncio itself ends a handshake after 60 s
            assert await waiting == b"OK"


async def test_a_master_that_answers_again_is_kept_and_trusted() -> None:
    async with watched(NO_TIMEOUT) as (sentinel, old, _, client):
        await call(client, "script")
        old.runs.clear()
        waiting = [asyncio.ensure_future(call(client, kind)) for kind in CALLS]
        await eventually(lambda: _is(sentinel.asked > 2))
        old.runs.set()
        assert await asyncio.gather(*waiting) == [b"OK"] * 2
        asked = sentinel.asked
        await _passes_longer_than_silence()
        assert (old.connections, sentinel.asked) == (2, asked)


async def test_a_client_that_is_closed_asks_no_more() -> None:
    async with watched(NO_TIMEOUT) as (sentinel, old, _, client):
        await call(client, "script")
        before = asyncio.all_tasks()
        old.runs.clear()
        waiting = asyncio.ensure_future(call(client, "script"))
        await eventually(lambda: _is(sentinel.asked > 2))
        waiting.cancel()
        await close_client(client)
        old.runs.set()
        await asyncio.wait([waiting])
        assert asyncio.all_tasks() <= before


async def test_a_master_that_answers_costs_the_sentinels_nothing() -> None:
    """Nor does one that lets a call block."""
    async with watched(NO_TIMEOUT) as (sentinel, _, _, client):
        blocking = MultiplexedConnection(client, timeout_s=60, blocks=True)
        await blocking.connect()
        blocked = asyncio.ensure_future(blocking.execute("BZPOPMIN", "a", 20))
        for kind in CALLS:
            await call(client, kind)
        asked = sentinel.asked
        await _passes_longer_than_silence()
        for kind in CALLS:
            await call(client, kind)
        assert sentinel.asked == asked == 3  # once for each connection
        await blocking.close()
        with pytest.raises(Ended):
            await blocked


async def _passes_longer_than_silence() -> None:
    """Longer than it is borne of a call."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=1.2)


async def _is(value: bool) -> bool:
    return value


async def test_a_single_server_is_not_left_and_refuses_at_once() -> None:
    """It has no other: its refusal is an answer."""
    server = Server()
    async with raw_server(server.serve) as port:
        url, options = f"redis://127.0.0.1:{port}/0", PoolOptions(socket_timeout_s=20)
        async with open_pool(url, options, name="t", client_class=ScriptRedis) as client:
            server.error = "NOREPLICAS too few"
            for kind in CALLS:
                for _ in range(2):
                    with pytest.raises(ResponseError, match="NOREPLICAS"):
                        await call(client, kind)
            assert (server.refused, server.connections) == (4, 2)
