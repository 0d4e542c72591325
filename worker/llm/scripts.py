"""
Runs a script once for each of many requests in one round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from cache.connection.scripts import Script
from cache.logs import get_logger

log = get_logger(__name__)


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key is not what this service stores under its name."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


async def run_many(
    client: Any,
    script: Script,
    calls: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    *,
    refused: int = 0,
) -> list[int]:
    """
    Run a script once for each (keys, args) in one round trip; the numbers it returned.

    A call that a key of another type refused counts as `refused`, and stops no other.
    """
    return [int(reply) for reply in await replies_of(client, script, calls, refused=refused)]


async def replies_of(
    client: Any,
    script: Script,
    calls: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    *,
    refused: Any,
) -> list[Any]:
    """As `run_many`, of a script that returns anything."""
    if not calls:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for keys, args in calls:
            pipe.execute_command(*script.command(keys, args))
        replies: list[Any] = await pipe.execute(raise_on_error=False)
    for number, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            replies[number] = await script.run(client, *calls[number])
        elif isinstance(reply, RedisError):
            if not is_wrong_type(reply):
                raise reply
            log.error("llm.keys_unreadable", error=str(reply)[:200])
            replies[number] = refused
    return replies
