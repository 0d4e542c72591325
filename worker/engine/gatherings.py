"""
Enqueues the job that follows a gathering whose results are too large for a script to join.

lua/_followers.lua adds such a gathering to the schedules, due at once. If a worker dies
here, the next poll of any worker finds it there.
"""

from __future__ import annotations

from typing import Any

from cache.connection.scripts import load
from cache.logs import get_logger
from worker.keys import QueueKeys
from worker.numbers import whole
from worker.queue.staging import staged

log = get_logger(__name__)

# A schedule's id never contains a tilde. lua/_followers.lua writes the same.
GATHERING = b"~gather:"

_GATHER_JOB = load(__package__, "gather_job", "..queue")
_MOST_PARTS = 1000
_MOST_BYTES = 67_108_864
# No msgpack begins with this byte, so the job becomes an undecodable dead letter.
_TOO_LARGE = b"\xc1"


class Gatherings:
    """Joins the results of gatherings through one client."""

    def __init__(self, client: Any, keys: QueueKeys, schedules: str) -> None:
        self._client = client
        self._keys = keys
        self._schedules = schedules

    async def enqueue(self, member: bytes) -> None:
        """Store the job that follows, and forget the gathering; safe to repeat."""
        keys, id_ = self._keys, member.removeprefix(GATHERING).decode()
        gather = keys.gather(id_)
        row = await self._client.hmget(gather, "size", "head", "tail", "queue", "job")
        size = whole(row[0], most=_MOST_PARTS)
        parts = [keys.gather_part(id_, index) for index in range(size)]
        found = None if None in row else await self._values(gather, parts)
        if not found:
            # It has expired, or somebody has changed it.
            await self._client.zrem(self._schedules, member)
            return
        queue, job_id = keys.stored_queue(row[3].decode()), row[4].decode()
        body = b"".join((row[1], b"\xdd", size.to_bytes(4, "big"), *found, row[2]))
        if len(body) > _MOST_BYTES:
            log.error("gather.too_large", job_id=job_id, bytes=len(body), most=_MOST_BYTES)
            body = _TOO_LARGE
        async with staged(self._client, keys, [body]) as names:
            script_keys = [self._schedules, gather, queue, keys.job(job_id), keys.result(job_id)]
            args = [member, job_id, *names, *parts]
            script_keys.append(keys.wake)
            await _GATHER_JOB.run(self._client, script_keys, args)

    async def _values(self, gather: str, parts: list[str]) -> list[bytes] | None:
        values: list[bytes] = []
        for index, part in enumerate(parts):
            value = await self._client.hget(gather, str(index))
            if value == b"":
                value = await self._client.get(part)
            if value is None:
                return None
            values.append(value)
        return values
