"""
Sends large bodies ahead of the scripts that store them.

A script copies its arguments and blocks the server meanwhile, about 1 ms per MiB. A plain SET
does not, because the server keeps the bytes that it has read. So a large body is first stored
under its own key, with a TTL, and the script renames that key.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from cache.connection.pool import OUTAGE
from cache.connection.scripts import load
from worker.keys import STAGED_TTL_S, QueueKeys

_STAGE_PART = load(__package__, "stage_part")

# A longer value is staged, bytes; and so are all that follow this many bytes in one call.
LARGE = 262_144
MOST_INLINE = 524_288
# What one script appends to a value on a full server, bytes.
_PIECE = 262_144

# A string, or the fields of a hash.
Staged = bytes | Mapping[str, bytes]


def large_ones(values: Sequence[bytes]) -> list[int]:
    """The positions of values that are too large for one script call."""
    found, inline = [], 0
    for number, value in enumerate(values):
        if len(value) > LARGE or inline + len(value) > MOST_INLINE:
            found.append(number)
        else:
            inline += len(value)
    return found


def steps(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """
    Cut values of these sizes into ranges (start, stop) for one script call each.

    A range has at most `most` values and about `MOST_INLINE` bytes; large values are staged and
    do not count.
    """
    start, inline = 0, 0
    for number, size in enumerate(sizes):
        more = size if size <= LARGE else 0
        if number - start >= most or (number > start and inline + more > MOST_INLINE):
            yield start, number
            start, inline = number, 0
        inline += more
    if start < len(sizes):
        yield start, len(sizes)


@asynccontextmanager
async def staged(
    client: Any, keys: QueueKeys, values: Sequence[Staged]
) -> AsyncIterator[list[str]]:
    """Store each value under its own key. At the end, delete the keys that no script has renamed."""
    if not values:
        yield []
        return
    names = [keys.staged(uuid.uuid4().hex) for _ in values]
    try:
        for name, value in zip(names, values, strict=True):
            await stage(client, name, value)
        yield names
    finally:
        with suppress(*OUTAGE):  # the keys expire
            await client.unlink(*names)


async def stage(client: Any, name: str, value: Staged) -> None:
    if not isinstance(value, Mapping):
        await client.set(name, value, ex=STAGED_TTL_S)
        return
    async with client.pipeline(transaction=True) as pipe:
        pipe.hset(name, mapping=dict(value))
        pipe.expire(name, STAGED_TTL_S)
        await pipe.execute()


async def stage_when_full(client: Any, name: str, value: bytes) -> None:
    """As `stage`, in pieces, on a server that has no memory for a plain SET but must end jobs."""
    for at in range(0, len(value), _PIECE):
        args = [at, value[at : at + _PIECE], STAGED_TTL_S * 1000]
        await _STAGE_PART.run(client, [name], args, alone=True)
