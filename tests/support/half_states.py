"""
Proves of a script that an error leaves nothing behind: it wrote all that it writes, or nothing.

A step is made once while the server's MONITOR shows which keys its script uses. Then it is made
again with each of them spoiled in turn: a key of another type in its place, or a field or
element that is no number; and on a server that refuses writes. A step that fails then must leave
the keyspace as it found it. What a user may not run is another matter (worker/queue/rights.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from redis.exceptions import RedisError

Step = Callable[[], Awaitable[Any]]
Snapshot = dict[bytes, tuple[bytes, int]]

# What a spoiled field or counter holds: text, the ends of 64 bits, beyond a double's.
ODD_NUMBERS = (b"x", b"", b"9223372036854775807", b"-9223372036854775808", b"1e400", b"nan", b"1.5")
_MANY = frozenset({"del", "unlink", "exists", "mget"})
_TWO = frozenset({"rename"})
_NO_KEY = frozenset({"time", "publish", "info"})
_SENT_BEFORE = (b"{arq}:staged:", b"{arq}:llm:part:", b"{arq}e:staged:")
_TYPES = ("hash", "list", "set", "zset", "string", "stream")


# What makes a server refuse writes: no memory, a little memory, no replicas.
REFUSALS = ("maxmemory 1", "maxmemory-bytes-left 64", "min-replicas-to-write 1")


class HalfState(AssertionError):
    """A step failed, and yet it wrote something."""


@dataclass(slots=True)
class Trials:
    """How often a step was made with something spoiled, and how often it failed then."""

    made: int = 0
    failed: int = 0


# One command each: hundreds of trials make them.
_SNAPSHOT = """
local rows = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  rows[#rows + 1], rows[#rows + 2] = key, redis.call('DUMP', key)
  rows[#rows + 1] = redis.call('PEXPIRETIME', key)
end
return rows
"""
_RESTORE = """
redis.call('FLUSHDB')
for i = 1, #ARGV, 3 do
  redis.call('RESTORE', ARGV[i], ARGV[i + 2], ARGV[i + 1], 'ABSTTL')
end
"""


async def snapshot(client: Any) -> Snapshot:
    """
    Every key's value as DUMP gives it, and when it expires.

    Without what was sent before a script that then failed: it expires, and nobody reads it.
    """
    rows = await client.eval(_SNAPSHOT, 0)
    return {
        key: (data, expires)
        for key, data, expires in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
        if not key.startswith(_SENT_BEFORE)
    }


async def restore(client: Any, state: Snapshot) -> None:
    rows = ((key, data, max(expires, 0)) for key, (data, expires) in state.items())
    await client.eval(_RESTORE, 0, *chain.from_iterable(rows))


async def touched(client: Any, step: Step) -> list[bytes]:
    """The keys that scripts use while a step is made."""
    return (await traced(client, step))[0]


async def traced(client: Any, step: Step) -> tuple[list[bytes], list[list[bytes]]]:
    """The keys that scripts use while a step is made, and what each of them declares."""
    keys: dict[bytes, None] = {}
    declared: list[list[bytes]] = []
    async with client.monitor() as monitor:
        ended = asyncio.Event()

        async def listen() -> None:
            async for command in monitor.listen():
                words = command["command"].split(" ")
                if command["client_type"] == "lua":
                    for key in _keys_of([word.strip('"') for word in words]):
                        keys[key.encode()] = None
                elif words[0].strip('"').upper() == "EVALSHA":
                    count = int(words[2].strip('"'))
                    declared.append([word.strip('"').encode() for word in words[3 : 3 + count]])
                elif words[-1] == "the-step-is-made":
                    ended.set()
                    return

        listener = asyncio.create_task(listen())
        await step()
        await client.echo("the-step-is-made")
        await asyncio.wait_for(ended.wait(), 10)
        await listener
    return list(keys), declared


def _keys_of(words: list[str]) -> list[str]:
    name, rest = words[0].lower(), words[1:]
    if name in _NO_KEY:
        return []
    if name in _MANY:
        return rest
    return rest[:2] if name in _TWO else rest[:1]


async def prove(client: Any, prepare: Step, step: Step) -> Trials:
    """
    Make the step with each key and number spoiled; `step` raises when its script refused.

    Raises:
        HalfState: it failed and had written; the message names what was spoiled, and the keys.
    """
    await client.flushall()
    await prepare()
    before, trials, found = await snapshot(client), Trials(), list[str]()
    keys = await touched(client, step)
    assert keys, "the step runs no script"

    async def attempt(what: str, spoil: Step) -> None:
        await restore(client, before)
        await spoil()
        spoiled = await snapshot(client)
        trials.made += 1
        try:
            await step()
        except (RedisError, RefusedStep) as exc:
            trials.failed += 1
            after = await snapshot(client)
            if after != spoiled:
                changed = [k for k in after | spoiled if after.get(k) != spoiled.get(k)]
                found.append(f"{what}: {exc}; changed: {changed}")

    for refusal in REFUSALS:
        try:
            await attempt(refusal, _setting(_refuse, client, refusal))
        finally:
            await client.config_set("maxmemory", 0)
            await client.config_set("min-replicas-to-write", 0)
    for key in keys:
        for kind in _TYPES:
            await attempt(f"{key!r} is a {kind}", _setting(make, client, key, kind))
    for key, what, spoil in await _numbers(client, before, keys):
        await attempt(f"{key!r}: {what}", spoil)
    if found:
        raise HalfState("\n".join(found[:10]))
    return trials


class RefusedStep(Exception):
    """For steps whose script reports an error in its reply."""


async def _refuse(client: Any, refusal: str) -> None:
    name, value = refusal.split()
    if name == "maxmemory-bytes-left":
        name, value = "maxmemory", (await client.info("memory"))["used_memory"] + int(value)
    await client.config_set(name, value)


async def make(client: Any, key: bytes, kind: str) -> None:
    await client.delete(key)
    if kind == "hash":
        await client.hset(key, "a", "b")
    elif kind == "list":
        await client.rpush(key, "a")
    elif kind == "set":
        await client.sadd(key, "a")
    elif kind == "zset":
        await client.zadd(key, {"a": 1})
    elif kind == "string":
        await client.set(key, "text")
    else:
        await client.xadd(key, {"a": "b"}, id="1-1")


async def _numbers(
    client: Any, before: Snapshot, keys: list[bytes]
) -> list[tuple[bytes, str, Step]]:
    """Each field of each hash, and each string, that the step uses, as every odd number."""
    await restore(client, before)
    found: list[tuple[bytes, str, Step]] = []
    for key in keys:
        kind = await client.type(key)
        if kind == b"hash":
            for field in await client.hkeys(key):
                for odd in ODD_NUMBERS:
                    what = f"{field!r} is {odd!r}"
                    found.append((key, what, _setting(client.hset, key, field, odd)))
                found.append((key, f"without {field!r}", _setting(client.hdel, key, field)))
        elif kind == b"string":
            found += [(key, f"is {odd!r}", _setting(client.set, key, odd)) for odd in ODD_NUMBERS]
        elif kind == b"zset":
            for member in await client.zrange(key, 0, -1):
                for score in ("-inf", "inf"):
                    spoil = _setting(client.zadd, key, {member: score})
                    found.append((key, f"{member!r} at {score}", spoil))
    return found


def _setting(command: Callable[..., Awaitable[Any]], *args: Any) -> Step:
    async def spoil() -> None:
        await command(*args)

    return spoil
