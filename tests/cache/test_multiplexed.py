"""The multiplexed connection: TLS, Sentinel and TCP, many callers, and its end."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.exceptions import NoScriptError, ResponseError

from cache import Cache, CacheOptions
from cache.connection import incarnation
from cache.connection.commands import encode_command
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.protocol import Away, Ended
from cache.errors import NotEncodable
from tests.support.caches import PATIENT_S, Loader, cache_on
from tests.support.servers import free_port, raw_server, tls_in_front, valkey
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


async def _works(cache: Cache) -> None:
    large = b"x" * 300_000
    await cache.agents.set("a1", large)
    calls = [cache.agents.get("a1") for _ in range(20)]
    assert await asyncio.gather(*calls) == [large] * 20
    assert await cache.agents.get_or_load("a2", Loader({"k": 1})) == {"k": 1}
    await cache.agents.invalidate("a1")
    assert await cache.agents.get("a1") is None
    assert cache.stats()["outages"] == 0


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_server_that_answers_no_handshake_may_speak_no_tls(scheme: str) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    options = PoolOptions(connect_timeout_s=PATIENT_S, socket_timeout_s=PATIENT_S)
    async with (
        raw_server(silent) as port,
        open_pool(f"{scheme}://127.0.0.1:{port}", options, name="t") as client,
    ):
        connection = MultiplexedConnection(client, timeout_s=0.2)
        with pytest.raises(Away, match="not connected within") as caught:
            await connection.execute("GET", "a")
        assert ("use redis:// instead" in str(caught.value)) is (scheme == "rediss")
        await connection.close()


async def test_a_close_while_it_connects_is_an_outage_to_callers() -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            reached.set()

    async with (
        raw_server(silent) as port,
        open_pool(f"redis://127.0.0.1:{port}", PoolOptions(), name="t") as client,
    ):
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        calls = [asyncio.create_task(connection.execute("GET", "a")) for _ in range(2)]
        await reached.wait()
        await connection.close()
        found = await asyncio.gather(*calls, return_exceptions=True)
        # A canceled caller would end as if somebody had canceled it.
        assert [type(each) for each in found] == [Away, Away]


async def test_the_commands_of_a_tick_leave_in_one_write(tmp_path: Path) -> None:
    with valkey(tmp_path) as port:
        url = f"redis://127.0.0.1:{port}"
        async with (
            cache_on(url, "lc:") as cache,
            open_pool(url, PoolOptions(), name="t") as client,
        ):
            for number in range(50):
                await cache.agents.set(f"a{number}", number)
            before = await client.info("all")
            assert len(await cache.agents.get_many(f"a{number}" for number in range(50))) == 50
            many = await client.info("all")
            assert await cache.agents.get("a1") == 1
            alone = await client.info("all")
            # Each INFO is a read that the next INFO counts.
            assert many["total_reads_processed"] - before["total_reads_processed"] == 2
            assert alone["total_reads_processed"] - many["total_reads_processed"] == 2
            # The MGET is the only command: no script, no second read. An INFO may be the cache's.
            used = {
                name: found["calls"] - many.get(name, {"calls": 0})["calls"]
                for name, found in alone.items()
                if name.startswith("cmdstat_")
            }
            assert {name for name, calls in used.items() if calls} == {
                "cmdstat_mget", "cmdstat_info",
            }  # fmt: skip
            assert used["cmdstat_mget"] == 1


async def test_the_run_is_asked_for_again_also_while_calls_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incarnation, "ASK_EVERY_S", 0.0)
    with valkey(tmp_path) as port:
        url = f"redis://127.0.0.1:{port}"
        async with open_pool(url, PoolOptions(), name="t") as client:
            asking, asked = MultiplexedConnection(client, timeout_s=PATIENT_S, follows_run=True), []
            for size in (10, 5_000_000):  # the reply arrives in one piece, and in many
                await client.set("x", b"x" * size)
                await client.config_resetstat()
                assert len(await asking.execute("GET", "x")) == size
                asked.append((await client.info("commandstats"))["cmdstat_info"]["calls"])
            await asking.close()
    first, second = asked
    assert first >= 1
    assert second > first


async def test_it_works_over_tls(valkey_url: str, prefix: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    options = PoolOptions(ca_file=tmp_path / "ca.pem", connect_timeout_s=PATIENT_S)
    async with (
        tls_in_front(valkey_url.removeprefix("unix://"), context) as port,
        open_pool(f"rediss://localhost:{port}/0", options, name="t") as client,
        Cache(client, CacheOptions(prefix=prefix, timeout_s=PATIENT_S)) as cache,
    ):
        await _works(cache)


async def test_it_works_with_a_password_and_a_database(tmp_path: Path) -> None:
    with valkey(tmp_path, "--requirepass", "hunter2") as port:
        async with cache_on(f"redis://:hunter2@127.0.0.1:{port}/3", "lc:") as cache:
            await _works(cache)
            assert await cache.client.dbsize() > 0


async def test_it_works_with_sentinel(tmp_path: Path) -> None:
    with valkey(tmp_path / "master") as master:
        home = tmp_path / "sentinel"
        home.mkdir()
        conf = home / "sentinel.conf"
        conf.write_text(f"sentinel monitor mine 127.0.0.1 {master} 1\nbind 127.0.0.1\n")
        with valkey(home, str(conf), "--sentinel") as port:
            url = f"redis+sentinel://127.0.0.1:{port}/mine/0"
            async with cache_on(url, "lc:") as cache:
                await _works(cache)


async def test_a_retired_connection_opens_none_again(valkey_url: str) -> None:
    """Of a node that left the map: a caller that still has it, and a dial that was canceled."""
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        await connection.execute("PING")
        await client.ping()  # leaves an open connection in the pool
        (left,) = client.connection_pool._available_connections
        await connection.retire()
        assert not left.is_connected
        with pytest.raises(Ended):
            await connection.execute("PING")
        assert not connection.is_connected


async def test_replies_go_to_their_callers(valkey_url: str, prefix: str) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        await asyncio.gather(
            *(connection.execute("SET", f"{prefix}{n}", n, "EX", 60) for n in range(99))
        )
        found = await asyncio.gather(
            *(connection.execute("GET", f"{prefix}{n}") for n in range(99))
        )
        assert found == [str(n).encode() for n in range(99)]
        await connection.close()


async def test_a_refused_command_fails_alone(valkey_url: str) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        calls = [
            connection.execute("NO-SUCH-COMMAND"),
            connection.evalsha("0" * 40, 0),
            connection.execute("ECHO", "x"),
        ]
        replies: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(replies[0], ResponseError)
        assert isinstance(replies[1], NoScriptError)
        assert replies[2] == b"x"
        await connection.close()


async def test_a_canceled_caller_does_not_shift_the_replies(valkey_url: str) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        await connection.connect()
        canceled = asyncio.create_task(connection.execute("ECHO", "canceled"))
        kept = asyncio.create_task(connection.execute("ECHO", "kept"))
        await asyncio.sleep(0)
        canceled.cancel()
        assert await kept == b"kept"
        await connection.close()


async def test_closing_gives_the_connection_back_to_its_pool(valkey_url: str) -> None:
    async with open_pool(valkey_url, PoolOptions(max_connections=1), name="t") as client:
        for _ in range(3):
            connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
            assert await connection.execute("ECHO", "x") == b"x"
            await connection.close()
        assert await client.ping()


async def test_a_refused_connection_raises_away(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with open_pool(url, PoolOptions(retries=0), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        with pytest.raises(Away):
            await connection.execute("PING")
        await connection.close()


async def test_waiting_calls_raise_away_when_the_connection_ends(
    valkey_url: str, client: Any
) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as pooled:
        connection = MultiplexedConnection(pooled, timeout_s=PATIENT_S)
        number = await connection.execute("CLIENT", "ID")
        blocked = asyncio.create_task(connection.execute("BLPOP", "never", 0))

        async def waiting() -> bool:
            lines = (await client.client_list(client_id=[str(number)]))[0]
            return bool(lines["cmd"] == "blpop")

        await eventually(waiting)
        await client.execute_command("CLIENT", "KILL", "ID", number)
        with pytest.raises(Away):
            await blocked
        assert await connection.execute("ECHO", "again") == b"again"
        await connection.close()


async def test_text_bytes_and_numbers_arrive_unchanged(valkey_url: str) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S)
        sent: tuple[Any, ...] = ("ü", b"\x00\r\n", 7, -1.5, "")
        script = "return ARGV"
        got = await connection.eval(script, 0, *sent)
        assert got == ["ü".encode(), b"\x00\r\n", b"7", b"-1.5", b""]
        await connection.close()


UNSENDABLE: tuple[Any, ...] = ("\ud800", "a\udfff", None, {"a": 1}, ["x"], ())


@pytest.mark.parametrize("odd", UNSENDABLE, ids=ascii)
@pytest.mark.parametrize("eager", [False, True])
async def test_an_unsendable_command_shifts_no_reply(
    valkey_url: str, odd: Any, eager: bool
) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S, eager=eager)
        await connection.connect()

        async def fetch(argument: Any) -> Any:
            return await connection.fetch(("MGET", "t:x", argument), lambda *_: None)

        async def ask(number: int) -> Any:
            if number % 4 == 0:
                return await (fetch(odd) if number % 8 else connection.execute("ECHO", odd))
            if number % 4 == 1:
                return await connection.execute_many([("ECHO", "first"), ("ECHO", odd)])
            return await connection.execute("ECHO", str(number))

        replies = await asyncio.gather(*(ask(n) for n in range(40)), return_exceptions=True)
        for number, reply in enumerate(replies):
            if number % 4 < 2:
                assert isinstance(reply, NotEncodable)
            else:
                assert reply == str(number).encode()
        assert connection.desynchronized == 0
        await connection.close()


async def test_a_command_that_cannot_be_sent_does_not_show_its_arguments() -> None:
    with pytest.raises(NotEncodable) as caught:
        encode_command(("SET", "hunter2", "hunter2\ud800"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("eager", [False, True])
async def test_a_queued_command_that_is_not_sent_ends_the_connection(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    async with open_pool(valkey_url, PoolOptions(), name="t") as client:
        connection = MultiplexedConnection(client, timeout_s=PATIENT_S, eager=eager)
        number = await connection.execute("CLIENT", "ID")
        blocked = asyncio.ensure_future(connection.execute("BLPOP", "never", 0))
        for _ in range(2):  # joined, then written
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def fail_once(*args: Any, **more: Any) -> Any:
            monkeypatch.setattr(loop, "call_soon", call_soon)
            raise MemoryError

        call = connection.execute("ECHO", "x")
        monkeypatch.setattr(loop, "call_soon", fail_once)
        with pytest.raises(MemoryError):
            call.send(None)
        with pytest.raises(Ended):  # at once; silence would raise another Away
            await blocked
        assert connection.desynchronized == 1
        assert await connection.execute("ECHO", "again") == b"again"
        assert await connection.execute("CLIENT", "ID") != number
        await connection.close()
