"""
Reads LLM batches from Redis: one batch, the list of batches, and their requests page by page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from worker.errors import Undecodable
from worker.keys import QueueKeys
from worker.llm.grouping import Group
from worker.llm.requests import StoredRequest
from worker.llm.scripts import is_wrong_type
from worker.llm.states import BatchState
from worker.llm.stored_groups import decode_group
from worker.numbers import moment, whole

_SIZES = load(__package__, "unanswered_sizes", "..queue")
# Requests read at a time, so that a large batch is never in memory as a whole.
PAGE = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as one run sees it. `epoch` is the run's fencing token for every transition."""

    id: str
    state: BatchState
    epoch: int
    group: Group
    size: int
    deadline_ms: int | None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def provider_id(self) -> str:
        """The provider's id of the batch; "" before it is submitted."""
        return self.fields.get("provider_id", "")

    @property
    def submitting_ms(self) -> int:
        return self.number("submitting_at")

    @property
    def is_canceled(self) -> bool:
        return self.fields.get("cancel") == "1"

    @property
    def is_guess(self) -> bool:
        """Whether it was adopted by time and size alone: `provider_id` may be another batch's."""
        return self.fields.get("guess") == "1"

    def moved(self, to: BatchState, fields: dict[str, str]) -> Batch:
        """The batch after a transition of this run."""
        return replace(self, state=to, fields={**self.fields, **fields})

    def number(self, name: str) -> int:
        return whole(self.fields.get(name))


class BatchReads:
    """Reads batches through one client; `BatchStore` writes them as well."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys

    async def groups(self) -> list[Group]:
        """The groups in which requests wait."""
        rows = await self.client.hgetall(self.keys.llm_groups)
        return [group for data in rows.values() if (group := readable_group(data)) is not None]

    async def waiting(self, group: Group) -> dict[str, int]:
        """A group's waiting requests: their number, bytes and estimated tokens."""
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.llen(self.keys.llm_pending(group.id))
            pipe.hmget(self.keys.llm_sizes(group.id), "bytes", "tokens")
            count, (size, tokens) = await pipe.execute()
        return {"requests": count, "bytes": whole(size), "tokens": whole(tokens)}

    async def waiting_ids(self, group: Group) -> list[str]:
        rows = await self.client.lrange(self.keys.llm_pending(group.id), 0, PAGE - 1)
        return [id_.decode() for id_ in rows]

    async def usage(self, group: Group) -> dict[str, int]:
        rows = await self.client.hgetall(self.keys.llm_usage(group.id))
        return {name.decode(): whole(value) for name, value in rows.items()}

    async def read(self, batch_id: str) -> Batch | None:
        row = await self.client.hgetall(self.keys.llm_batch(batch_id))
        return batch_of(batch_id, row) if row else None

    async def outstanding(self, batch_id: str) -> int:
        return int(await self.client.scard(self.keys.llm_open(batch_id)))

    async def ids(self, batch_id: str) -> AsyncIterator[list[str]]:
        """The ids of a batch's requests in the order of its file, page by page."""
        start = 0
        while rows := await self.client.lrange(
            self.keys.llm_items(batch_id), start, start + PAGE - 1
        ):
            yield [id_.decode() for id_ in rows]
            start += PAGE

    async def sizes(self, batch_id: str) -> tuple[int, int]:
        """The number of unanswered requests of a batch, and the bytes of their bodies and ids."""
        start = count = size = 0
        looked = PAGE
        while looked == PAGE:
            looked, more, more_bytes = await _SIZES.run(
                self.client,
                [self.keys.llm_items(batch_id)],
                [self.keys.llm, batch_id, start, PAGE],
            )
            start, count, size = start + looked, count + more, size + more_bytes
        return count, size

    async def unanswered(self, batch_id: str) -> AsyncIterator[list[StoredRequest]]:
        """The requests of a batch that have no answer yet, page by page."""
        names = ("body", "deadline", "tokens", "batch", "group", "expires")
        async for ids in self.ids(batch_id):
            async with self.client.pipeline(transaction=False) as pipe:
                for id_ in ids:
                    pipe.hmget(self.keys.llm_request(id_), *names)
                rows = await run_apart(pipe)
            # A key of another type is no request; one without its group travels in the batch's.
            yield [
                StoredRequest(
                    id=id_,
                    group=readable_group(row[4]) or _NO_GROUP,
                    body=row[0] or b"",
                    deadline_ms=whole(row[1]) or None,
                    tokens=whole(row[2]),
                    urgent=False,
                    expires_ms=whole(row[5]) or None,
                )
                for id_, row in zip(ids, rows, strict=True)
                if not isinstance(row, Exception) and row[3] == batch_id.encode()
            ]

    async def open_items(
        self, batch_id: str, request_ids: Sequence[str]
    ) -> dict[str, tuple[int, int | None]]:
        """Those of the requests that are open in the batch: id -> (batches so far, deadline in Unix ms)."""
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in request_ids:
                pipe.hmget(self.keys.llm_request(id_), "batch", "tries", "deadline")
            rows = await run_apart(pipe)
        return {
            id_: (whole(row[1], fallback=1), whole(row[2]) or None)
            for id_, row in zip(request_ids, rows, strict=True)
            if not isinstance(row, Exception) and row[0] == batch_id.encode()
        }

    async def lost(self, batch_id: str) -> list[str]:
        """Ids that the batch counts as open although no request of it is behind them."""
        open_ids = sorted(await self.client.smembers(self.keys.llm_open(batch_id)))
        found: list[str] = []
        for at in range(0, len(open_ids), PAGE):
            page = [id_.decode(errors="replace") for id_ in open_ids[at : at + PAGE]]
            known = await self.open_items(batch_id, page)
            found += [id_ for id_ in page if id_ not in known]
        return found

    async def listed(self, limit: int) -> list[Batch]:
        """The newest batches, newest first."""
        ids = await self.client.zrange(self.keys.llm_batches, 0, limit - 1, desc=True)
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hgetall(self.keys.llm_batch(id_.decode()))
            rows = await run_apart(pipe) if ids else []
        found = [_readable_batch(id_.decode(), row) for id_, row in zip(ids, rows, strict=True)]
        return [batch for batch in found if batch is not None]


async def run_apart(pipe: Any) -> list[Any]:
    """
    A pipeline's replies; the error of a key of another type stands in its reply's place.

    Raises:
        ResponseError: any other refusal.
    """
    replies: list[Any] = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return replies


# Of a request that lost its group: the batch that carries it has one of its own.
_NO_GROUP = Group("", "", "")


def readable_group(data: bytes | None) -> Group | None:
    """A stored group; None where it is none of ours, so that one bad one stops no other."""
    try:
        return None if data is None else decode_group(data)
    except Undecodable:
        return None


def _readable_batch(batch_id: str, row: dict[bytes, bytes] | Exception) -> Batch | None:
    try:
        return None if isinstance(row, Exception) or not row else batch_of(batch_id, row)
    except Undecodable:
        return None


def batch_of(batch_id: str, row: dict[bytes, bytes]) -> Batch:
    """
    A batch from its hash.

    Raises:
        Undecodable: it has no state or group of ours.
    """
    group = row.get(b"group", b"")
    others = [(name, value) for name, value in row.items() if name != b"group"]
    fields = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, value in others
    }
    try:
        state = BatchState(fields.get("state", ""))
    except ValueError:
        raise Undecodable(f"batch {batch_id!r} has no state that is known") from None
    return Batch(
        id=batch_id,
        state=state,
        epoch=whole(fields.get("epoch")),
        group=decode_group(group),
        size=whole(fields.get("items")),
        deadline_ms=whole(fields.get("deadline")) or None,
        fields=fields,
    )


def created_at(batch: Batch) -> datetime:
    return moment(batch.number("created"))


def error_at(batch: Batch) -> str | None:
    """When the batch's error happened, ISO 8601."""
    at_ms = batch.number("error_at") if batch.fields.get("error") else 0
    return moment(at_ms).isoformat() if at_ms else None
