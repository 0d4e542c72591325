"""
Pages through a sorted set whose members come, move and leave.

A cursor names the last member that was read, with its score: members that stay are neither
repeated nor left out.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from worker.errors import InvalidArgument
from worker.queue.arguments import require_name
from worker.queue.job import reach
from worker.queue.priority import Priority
from worker.queue.rows import Place

# Three characters a byte of an id, and the place before it.
_LONGEST_CURSOR = 3 * 1024 + 64


async def rank_behind(client: Any, key: str, after: Place) -> int:
    """The rank of the first member behind a place. The place's own member may have left."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.zrank(key, after.id)
        pipe.zscore(key, after.id)
        rank, score = await reach(pipe.execute())
    if score == after.score:
        return int(rank) + 1
    low = int(await reach(client.zcount(key, "-inf", f"({after.score!r}")))
    high = int(await reach(client.zcount(key, "-inf", repr(after.score))))
    while low < high:  # among members of one score, which are sorted by their bytes
        middle = (low + high) // 2
        rows = await reach(client.zrange(key, middle, middle))
        if rows and rows[0] <= after.id:
            low = middle + 1
        else:
            high = middle
    return low


def cursor_of(place: Place) -> str:
    return f"{place.queue}:{place.score!r}:{quote_from_bytes(place.id)}"


def read_cursor(cursor: str) -> Place | None:
    """
    Read what `cursor_of` wrote; None for "".

    Raises:
        InvalidArgument: it is something else.
    """
    if cursor == "":
        return None
    require_name("cursor", cursor, longest=_LONGEST_CURSOR)
    queue, _, rest = cursor.partition(":")
    score, _, job_id = rest.partition(":")
    try:
        place = Place(int(queue), float(score), unquote_to_bytes(job_id))
    except ValueError:
        place = Place(-1, 0.0, b"")
    if not 0 <= place.queue < len(Priority) or math.isnan(place.score) or not place.id:
        raise InvalidArgument("cursor is not one that a page gave")
    return place
