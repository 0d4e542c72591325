"""
Lists, retries and purges dead letters: jobs that failed for good.

A dead letter keeps the job's body until it is too old or there are too many. A
retry starts with zero tries, and without the job's own expiry. Every retry and
purge writes a line to the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from cache.connection.scripts import load
from cache.logs import get_logger
from worker.errors import InvalidArgument
from worker.keys import EngineKeys, QueueKeys
from worker.queue.arguments import require_name, unix_ms
from worker.queue.filters import JobFilter
from worker.queue.job import reach
from worker.queue.letters import (
    SHOWN,
    DeadLetter,
    letter_of,
    name_and_reason,
    shown_row,
    without_expiry,
)
from worker.queue.places import cursor_of, rank_behind, read_cursor
from worker.queue.rows import Place
from worker.queue.staging import LARGE, staged

log = get_logger(__name__)

_RETRY = load(__package__, "dead_retry")
_PAGE = 500
# Bodies may be large: so many are in memory at a time.
_BODIES = 20
# Inside `DeadLetters`, the name `list` means its method.
_Letters = list[DeadLetter]
_Ids = list[str]
_Rows = list[tuple[str, str, str]]


class DeadLetters:
    """Lists, retries and purges dead letters. A client has it as `queue.dead`."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    async def list(self, *, limit: int = 100, offset: int = 0) -> _Letters:
        """Return dead letters, newest first."""
        ids = await reach(
            self._client.zrange(self._keys.dead, offset, offset + limit - 1, desc=True)
        )
        return await self._read([id_.decode(errors="replace") for id_ in ids])

    async def get(self, job_id: str) -> DeadLetter | None:
        require_name("job_id", job_id)
        found = await self._read([job_id])
        return found[0] if found else None

    async def count(self) -> int:
        return int(await reach(self._client.zcard(self._keys.dead)))

    async def names(self, prefixes: tuple[str, ...]) -> AsyncIterator[tuple[str, str, str]]:
        """Id, function's name ("" where unknown) and reason of those whose ids begin so; no bodies."""
        for offset in range(0, await self.count(), _PAGE):
            page = await reach(self._client.zrange(self._keys.dead, offset, offset + _PAGE - 1))
            ids = [id_.decode(errors="replace") for id_ in page]
            for row in await self._names([id_ for id_ in ids if id_.startswith(prefixes)]):
                yield row

    async def _names(self, ids: Sequence[str]) -> _Rows:
        if not ids:
            return []
        async with self._client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.exists(self._keys.dead_job(id_))
                pipe.hmget(self._keys.dead_job(id_), "name", "reason")
            rows = await reach(pipe.execute(raise_on_error=False))
        return [
            (id_, *name_and_reason(row))
            for id_, is_there, row in zip(ids, rows[::2], rows[1::2], strict=True)
            if is_there
        ]

    async def search(
        self, wanted: JobFilter, *, limit: int = 100, cursor: str = ""
    ) -> tuple[_Ids, int, str]:
        """
        Ids of letters that match a filter, oldest first, of `limit` that are looked at; how many those
        were; and the cursor of the next ones, "" after the last.

        Its `arguments` are not compared.

        Raises:
            InvalidArgument: a part of the filter, or the cursor, is not valid.
        """
        wanted.check()
        after = read_cursor(cursor)
        rank = 0 if after is None else await rank_behind(self._client, self._keys.dead, after)
        page = await reach(
            self._client.zrange(self._keys.dead, rank, rank + limit - 1, withscores=True)
        )
        if not page:
            return [], 0, ""
        ids = [id_.decode(errors="replace") for id_, _ in page]
        async with self._client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hmget(self._keys.dead_job(id_), *SHOWN)
            rows = await reach(pipe.execute(raise_on_error=False))
        now = datetime.now(UTC)
        letters = [letter_of(id_, shown_row(row)) for id_, row in zip(ids, rows, strict=True)]
        found = [each.id for each in letters if _is_wanted(each, wanted, now)]
        last_id, score = page[-1]
        return found, len(ids), cursor_of(Place(0, score, last_id))

    async def retry_each(self, job_ids: Sequence[str]) -> int:
        """Enqueue these dead letters again, as `retry`. Return how many."""
        for job_id in job_ids:
            require_name("job_ids", job_id)
        done = 0
        for at in range(0, len(job_ids), _BODIES):
            letters = await self._read(job_ids[at : at + _BODIES])
            done += sum(await asyncio.gather(*map(self._retry, letters)))
        return done

    async def purge_each(self, job_ids: Sequence[str]) -> int:
        """Delete these dead letters, as `purge`. Return how many."""
        for job_id in job_ids:
            require_name("job_ids", job_id)
        rows = await self._names(job_ids)
        if not rows:
            return 0
        async with self._client.pipeline(transaction=True) as pipe:
            for id_, _, _ in rows:
                pipe.unlink(self._keys.dead_job(id_), self._keys.dead_body(id_))
                pipe.zrem(self._keys.dead, id_)
                pipe.zrem(self._keys.dead_queues, id_)
            removed = (await reach(pipe.execute()))[1::3]
        for (id_, name, reason), was_there in zip(rows, removed, strict=True):
            if was_there:
                log.info("dead.purged", job_id=id_, task=name or None, reason=reason)
        return sum(removed)

    async def retry(self, job_id: str | None = None, *, since: datetime | None = None) -> int:
        """
        Enqueue one dead letter again, or all that died since a time. Return how many.

        A dead letter stays if a job with its id waits or runs, or if its body was not kept.

        Raises:
            InvalidArgument: neither or both were given, or `since` has no time zone.
        """
        _require_one(job_id, since)
        done = 0
        async for ids in self._chosen(job_id, since, None):
            done += await self.retry_each(ids)
        return done

    async def purge(self, job_id: str | None = None, *, before: datetime | None = None) -> int:
        """
        Delete one dead letter, or all that died before a time. Return how many.

        Raises:
            InvalidArgument: neither or both were given, or `before` has no time zone.
        """
        _require_one(job_id, before)
        done = 0
        async for ids in self._chosen(job_id, None, before):
            done += await self.purge_each(ids)
        return done

    async def _retry(self, letter: DeadLetter) -> bool:
        keys = self._keys
        names = [keys.dead, keys.dead_job(letter.id), keys.job(letter.id), keys.result(letter.id)]
        names += [keys.wake, keys.retry(letter.id), keys.dead_body(letter.id)]
        names += [*EngineKeys(keys).queues, keys.dead_queues]
        outcome = await reach(self._put(names, letter.id, without_expiry(letter.body)))
        if outcome == 1:
            log.info("dead.retried", job_id=letter.id, task=letter.name, reason=letter.reason)
        return bool(outcome == 1)

    async def _put(self, names: Sequence[str], job_id: str, body: bytes) -> int:
        if len(body) <= LARGE:
            return int(await _RETRY.run(self._client, names, [job_id, body]))
        async with staged(self._client, self._keys, [body]) as sent:
            return int(await _RETRY.run(self._client, names, [job_id, "", *sent]))

    async def _chosen(
        self, job_id: str | None, since: datetime | None, before: datetime | None
    ) -> AsyncIterator[_Ids]:
        if job_id is not None:
            yield [job_id]
            return
        high = None if before is None else unix_ms("before", before)
        rank = 0
        if since is not None:
            low = f"({unix_ms('since', since)}"
            rank = await reach(self._client.zcount(self._keys.dead, "-inf", low))
        # One that is retried and dies again comes behind it.
        newest = await reach(self._client.zrange(self._keys.dead, -1, -1, withscores=True))
        while newest:
            page = await reach(
                self._client.zrange(self._keys.dead, rank, rank + _PAGE - 1, withscores=True)
            )
            due = [
                id_ for id_, died in page if died <= newest[0][1] and (high is None or died < high)
            ]
            if due:
                yield [id_.decode(errors="replace") for id_ in due]
            if not page or len(due) < len(page):
                return
            last_id, died = page[-1]
            rank = await rank_behind(self._client, self._keys.dead, Place(0, died, last_id))

    async def _read(self, ids: Sequence[str]) -> _Letters:
        async with self._client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hgetall(self._keys.dead_job(id_))
            rows = await reach(pipe.execute(raise_on_error=False))
        for id_, row in zip(ids, rows, strict=True):
            if isinstance(row, dict) and row.get(b"body") == b"":
                row[b"body"] = await reach(self._client.get(self._keys.dead_body(id_))) or b""
        return [letter_of(id_, row) for id_, row in zip(ids, rows, strict=True) if row]


def _is_wanted(letter: DeadLetter, wanted: JobFilter, now: datetime) -> bool:
    return wanted.accepts(
        now,
        job_id=letter.id,
        function=letter.name,
        priority=letter.priority,
        tries=letter.tries,
        since=letter.died_at,
        error=f"{letter.reason} {letter.error}",
    )


def _require_one(job_id: str | None, moment: datetime | None) -> None:
    if (job_id is None) == (moment is None):
        raise InvalidArgument("give either a job id or a time")
    if job_id is not None:
        require_name("job_id", job_id)
