"""
LLM batches as they are in Redis: read whole, listed, their requests a page at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from worker.keys import QueueKeys
from worker.llm.grouping import Group
from worker.llm.requests import StoredRequest, decode_group
from worker.llm.states import BatchState
from worker.numbers import whole

# A slice of a batch read at a time, so that a large one is never in memory whole.
PAGE = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """One run's view of a batch: `epoch` is the run's own, and what its moves are compared with."""

    id: str
    state: BatchState
    epoch: int
    group: Group
    size: int
    deadline_ms: int | None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def provider_id(self) -> str:
        """The provider's name for it, "" before it is submitted."""
        return self.fields.get("provider_id", "")

    @property
    def submitting_ms(self) -> int:
        return self.number("submitting_at")

    @property
    def is_canceled(self) -> bool:
        return self.fields.get("cancel") == "1"

    @property
    def is_guess(self) -> bool:
        """Adopted by time and size alone: its `provider_id` may be another batch's."""
        return self.fields.get("guess") == "1"

    def moved(self, to: BatchState, fields: dict[str, str]) -> Batch:
        """As it is after a move of this run."""
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
        return [decode_group(data) for data in rows.values()]

    async def waiting(self, group: Group) -> dict[str, int]:
        """How many requests of a group wait, their bytes and estimated tokens."""
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
        """The ids of a batch's requests in the order of its file, a page at a time."""
        start = 0
        while rows := await self.client.lrange(
            self.keys.llm_items(batch_id), start, start + PAGE - 1
        ):
            yield [id_.decode() for id_ in rows]
            start += PAGE

    async def sizes(self, batch_id: str) -> tuple[int, int]:
        """How many unanswered requests a batch holds, and the bytes of their bodies and ids."""
        count = size = 0
        async for ids in self.ids(batch_id):
            async with self.client.pipeline(transaction=False) as pipe:
                for id_ in ids:
                    pipe.hmget(self.keys.llm_request(id_), "bytes", "batch")
                rows = await pipe.execute()
            for id_, (length, owner) in zip(ids, rows, strict=True):
                if owner is not None and owner.decode() == batch_id:
                    count, size = count + 1, size + whole(length) + len(id_)
        return count, size

    async def unanswered(self, batch_id: str) -> AsyncIterator[list[StoredRequest]]:
        """The requests of a batch that have no answer yet, a page at a time."""
        names = ("body", "deadline", "tokens", "batch", "group", "expires")
        async for ids in self.ids(batch_id):
            async with self.client.pipeline(transaction=False) as pipe:
                for id_ in ids:
                    pipe.hmget(self.keys.llm_request(id_), *names)
                rows = await pipe.execute()
            yield [
                StoredRequest(
                    id=id_,
                    group=decode_group(group),
                    body=body,
                    deadline_ms=whole(deadline) or None,
                    tokens=whole(tokens),
                    urgent=False,
                    expires_ms=int(expires) if expires else None,
                )
                for id_, (body, deadline, tokens, owner, group, expires) in zip(
                    ids, rows, strict=True
                )
                if owner is not None and owner.decode() == batch_id
            ]

    async def open_items(
        self, batch_id: str, request_ids: Sequence[str]
    ) -> dict[str, tuple[int, int | None]]:
        """Of these requests, those open in the batch: batches that carried it, deadline in Unix ms."""
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in request_ids:
                pipe.hmget(self.keys.llm_request(id_), "batch", "tries", "deadline")
            rows = await pipe.execute()
        return {
            id_: (whole(tries, fallback=1), whole(deadline) or None)
            for id_, (owner, tries, deadline) in zip(request_ids, rows, strict=True)
            if owner is not None and owner.decode() == batch_id
        }

    async def listed(self, limit: int) -> list[Batch]:
        """The newest batches, newest first."""
        ids = await self.client.zrange(self.keys.llm_batches, 0, limit - 1, desc=True)
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hgetall(self.keys.llm_batch(id_.decode()))
            rows = await pipe.execute() if ids else []
        return [batch_of(id_.decode(), row) for id_, row in zip(ids, rows, strict=True) if row]


def batch_of(batch_id: str, row: dict[bytes, bytes]) -> Batch:
    group = row.pop(b"group")
    fields = {name.decode(): value.decode() for name, value in row.items()}
    return Batch(
        id=batch_id,
        state=BatchState(fields["state"]),
        epoch=whole(fields.get("epoch")),
        group=decode_group(group),
        size=whole(fields.get("items")),
        deadline_ms=whole(fields.get("deadline")) or None,
        fields=fields,
    )


def created_at(batch: Batch) -> datetime:
    return datetime.fromtimestamp(batch.number("created") / 1000, UTC)
