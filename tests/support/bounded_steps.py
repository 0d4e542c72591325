"""
Measures how long scripts hold the server.

The limit is 5 ms on an idle machine: 2,000 commands of a script. What the machine makes of
them today is measured beside, so that a test means the same on a busy one. Commands are counted
too, which no other process disturbs; but one command may take long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

# New keys, as most steps write: their memory is what a busy machine makes slow.
REFERENCE = "for i = 1, 2000 do redis.call('SET', KEYS[1] .. i, ARGV[1]) end"
MOST_COMMANDS = 2000
# A busy machine may disturb several measurements in a row.
ROUNDS = 20
_MEASURING = {b"CONFIG", b"SLOWLOG", b"INFO"}
# They copy one value: 32 MiB take 35 ms, whoever sends them.
_COPYING = {b"SET", b"GET", b"HSET", b"HGET", b"HMGET", b"HGETALL"}
Act = Callable[[], Awaitable[object]]


async def longest_us(client: Any, act: Act) -> int:
    """The longest script, or command that does more than copy a value; microseconds of the server."""
    await client.config_set("slowlog-max-len", 20_000)
    await client.config_set("slowlog-log-slower-than", 0)
    await client.execute_command("SLOWLOG", "RESET")
    await act()
    await client.config_set("slowlog-log-slower-than", -1)
    rows = await client.execute_command("SLOWLOG", "GET", 20_000)
    left_out = _MEASURING | _COPYING
    return max((row[2] for row in rows if row[3][0].upper() not in left_out), default=0)


async def _calls(client: Any) -> dict[str, int]:
    stats = await client.info("commandstats")
    return {name: row["calls"] for name, row in stats.items()}


async def commands_a_script(client: Any, act: Act) -> float:
    """The commands that it sends, those within its scripts included, for each script it runs."""
    before = await _calls(client)
    await act()
    calls = {name: n - before.get(name, 0) for name, n in (await _calls(client)).items()}
    scripts = calls.get("cmdstat_evalsha", 0) + calls.get("cmdstat_eval", 0)
    return sum(calls.values()) / max(1, scripts)


async def assert_short_steps(
    client: Any, prefix: str, act: Act, prepare: Act | None = None
) -> None:
    """
    Another process may have had the processor: of several times one has to be short.

    `prepare` makes anew, before each, what the first one clears away.
    """
    reference = partial(client.eval, REFERENCE, 1, f"{prefix}reference:", "x" * 200)
    written = [f"{prefix}reference:{number}" for number in range(1, 2001)]
    times: list[int] = []
    limits: list[int] = []

    async def measured() -> None:
        times.append(await longest_us(client, act))

    for _ in range(ROUNDS):
        if prepare is not None:
            await prepare()
        assert await commands_a_script(client, measured) <= MOST_COMMANDS
        assert times[-1] > 0
        # The least disturbed of three: a disturbed reference would allow anything.
        found = []
        for _ in range(3):
            found.append(await longest_us(client, reference))
            await client.delete(*written)
        limits.append(min(found))
        if times[-1] <= limits[-1]:
            return
    raise AssertionError(f"microseconds: {times}, and what was allowed: {limits}")
