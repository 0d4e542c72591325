"""A cache whose user loses a right asks its loaders, serves nothing stale, and works again when it is back."""

from __future__ import annotations

from typing import Any

import pytest

from cache import Cache
from cache.options import LocalOptions
from tests.support.caches import cache_on
from tests.support.users import as_weak, set_rights
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

# What a hit, a load, an append, an invalidation and the backplane use.
COMMANDS = (
    "GET", "MGET", "EVALSHA", "SET", "UNLINK", "PTTL", "PEXPIRE", "ZRANGE", "ZADD", "ZCARD", "XADD",
    "XREAD", "XRANGE", "EXPIRE", "SETRANGE", "TIME",
)  # fmt: skip


async def reads(cache: Cache, value: int) -> Any:
    async def load() -> dict[str, int]:
        return {"n": value}

    return (await cache.agents.get_or_load("a", load))["n"]


async def test_a_denied_command_costs_misses_and_nothing_stale(
    owner: Any, private_valkey_url: str
) -> None:
    """Both have copies inside the process; one changes the value while the other has lost a right."""
    url = as_weak(private_valkey_url)
    local = LocalOptions(ttl_s=60)
    async with (
        cache_on(private_valkey_url, "lc:", local=local) as writer,
        cache_on(url, "lc:", local=local) as weak,
    ):
        now = 0
        for command in COMMANDS:
            assert await reads(weak, now) == now
            await set_rights(owner, f"-{command}")
            for _ in range(3):
                now += 1
                assert await writer.agents.invalidate("a")

                async def is_seen() -> bool:
                    return bool(await reads(weak, now) == now)  # noqa: B023

                await eventually(is_seen)  # a copy inside the process lives until its event comes
                await weak.agents.invalidate("a")  # denied, perhaps
                assert await reads(writer, now) == now, command
            await set_rights(owner, f"+{command}")

            async def works_again() -> bool:
                await reads(weak, now)  # noqa: B023
                return bool(await weak.agents.get("a") == {"n": now})  # noqa: B023

            await eventually(works_again)


async def test_a_forged_event_ends_no_backplane(owner: Any, private_valkey_url: str) -> None:
    local = LocalOptions(ttl_s=60)
    async with (
        cache_on(private_valkey_url, "lc:", local=local) as writer,
        cache_on(private_valkey_url, "lc:", local=local) as other,
    ):
        assert await reads(other, 1) == 1
        await writer.agents.invalidate("b")
        (stream,) = [key async for key in owner.scan_iter() if b"backplane" in key]
        begun = await times_begun(owner)
        for field, value in ((b"i", b"\xff\xfe"), (b"\xff", b""), (b"i", b"")):
            await owner.xadd(stream, {field: value})
        await writer.agents.invalidate("a")

        async def is_seen() -> bool:
            return bool(await reads(other, 2) == 2)

        await eventually(is_seen)
        await eventually(lambda: followed_by(owner, 2))
        assert await times_begun(owner) == begun


async def followed_by(owner: Any, count: int) -> bool:
    """Whether so many clients are blocked by a read of the stream."""
    return ["b" in each["flags"] for each in await owner.client_list()].count(True) == count


async def times_begun(owner: Any) -> int:
    """How often a process has begun to follow the backplane: it asks for its end once."""
    return int((await owner.info("commandstats"))["cmdstat_xrevrange"]["calls"])
