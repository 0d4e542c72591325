"""
Calls an Anthropic-compatible endpoint: /v1/messages and message batches.

POST /v1/messages/batches contains the requests themselves and has neither an
idempotency key nor metadata. A submission whose reply was lost is looked up by
time and count; the custom ids of its results confirm later that it is ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime
from typing import Any

import httpx

from worker.errors import Permanent
from worker.llm.answers import Answer
from worker.llm.grouping import Group
from worker.llm.providers.bounded import ResponseTooLarge
from worker.llm.providers.calls import DEFAULT_MAX_BYTES, ProviderCalls, checked
from worker.llm.providers.protocol import BatchesUnsupported, BrokenOff, Lines, RemoteBatch
from worker.llm.providers.result_rows import answers_of
from worker.llm.providers.rows import (
    MOST_PAGES,
    id_of,
    in_path,
    mapping,
    page_after,
    rows_of,
    usable_id,
)
from worker.llm.providers.single import lost, read_single
from worker.llm.providers.statuses import batch_status
from worker.llm.result_lines import read_message_item
from worker.llm.states import LookupResult
from worker.numbers import whole

_VERSION = "2023-06-01"
_BATCHES = "/v1/messages/batches"
_LIST_PAGE = 100
# Our clock and the provider's may differ by this.
_SKEW_MS = 300_000


class AnthropicProvider:
    """One base URL (without /v1) and key. `timeout_s` limits each whole call."""

    uploads = False

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        headers = {"anthropic-version": _VERSION, **({"x-api-key": api_key} if api_key else {})}
        self._calls = ProviderCalls(
            client,
            base_url=base_url.removesuffix("/v1"),
            headers=headers,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
        )

    async def complete(self, group: Group, body: bytes) -> Answer:
        headers = {"content-type": "application/json"}
        try:
            reply = await self._calls.call("POST", group.endpoint, content=body, headers=headers)
        except (ResponseTooLarge, BrokenOff) as exc:
            return lost(exc)
        return await read_single(reply)

    async def upload(self, lines: Lines) -> str:  # noqa: ARG002  (nothing to upload)
        return ""

    async def submit(
        self,
        group: Group,  # noqa: ARG002  (models may mix)
        lines: Lines,
        *,
        file_id: str,  # noqa: ARG002
    ) -> RemoteBatch:
        head, tail = b'{"requests":[', b"]}"
        around = len(_line("", b"")) + 1  # a comma precedes every line but the first
        size = len(head) + lines.total(around) - 1 + len(tail)

        async def content() -> AsyncIterator[bytes]:
            yield head
            async for chunk in lines.pages(_line, between=b","):
                yield chunk
            yield tail

        headers = {"content-type": "application/json", "content-length": str(size)}
        reply = await self._calls.call(
            "POST", _BATCHES, size=size, content=content(), headers=headers
        )
        row = checked(reply, absent=BatchesUnsupported)
        return _remote(row, id_of(row, "batch"))

    async def find(
        self, batch_id: str, *, since_ms: int, count: int, taken: Collection[str]
    ) -> LookupResult:
        del batch_id  # the list does not show it
        after: str | None = None
        found: list[str] = []
        for _ in range(MOST_PAGES):
            query = {"limit": str(_LIST_PAGE), **({"after_id": after} if after else {})}
            try:
                page = checked(
                    await self._calls.call("GET", _BATCHES, params=query), absent=Permanent
                )
            except Permanent:
                return LookupResult(complete=False)
            rows = rows_of(page)
            recent = [row for row in rows if _created_ms(row) >= since_ms - _SKEW_MS]
            fitting = [usable_id(row.get("id")) for row in recent if _total(row) == count]
            found += [id_ for id_ in fitting if id_ is not None and id_ not in taken]
            if not page.get("has_more") or len(recent) < len(rows) or not rows:
                # Take the oldest match: a later one may be another submission.
                return LookupResult(found[-1], certain=False) if found else LookupResult()
            after = page_after(rows, after)
            if after is None:
                break
        return LookupResult(found[-1], certain=False) if found else LookupResult(complete=False)

    async def read(self, provider_id: str) -> RemoteBatch:
        path = f"{_BATCHES}/{in_path(provider_id)}"
        return _remote(checked(await self._calls.call("GET", path)), provider_id)

    async def cancel(self, provider_id: str) -> RemoteBatch:
        path = f"{_BATCHES}/{in_path(provider_id)}/cancel"
        try:
            return _remote(checked(await self._calls.call("POST", path)), provider_id)
        except Permanent:
            return await self.read(provider_id)

    async def delete_files(
        self,
        batch_id: str,  # noqa: ARG002  (a batch has no files)
        file_ids: Collection[str],  # noqa: ARG002
        *,
        since_ms: int | None,  # noqa: ARG002
    ) -> int:
        return 0

    async def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        async for row in self._calls.rows(f"{_BATCHES}/{in_path(remote.id)}/results"):
            for pair in answers_of(row, read_message_item, ("result", "message")):
                yield pair


def _line(custom_id: str, body: bytes) -> bytes:
    return b'{"custom_id":"' + custom_id.encode() + b'","params":' + body + b"}"


def _created_ms(row: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(row.get("created_at"))).timestamp() * 1000
    except (ValueError, OverflowError):
        return float("inf")


def _total(row: Mapping[str, Any]) -> int:
    return sum(whole(value) for value in mapping(row.get("request_counts")).values())


def _remote(row: Mapping[str, Any], id_: str) -> RemoteBatch:
    status, ended, _ = batch_status(row, "processing_status")
    counts = mapping(row.get("request_counts"))
    ends = ("succeeded", "errored", "canceled", "expired")
    results = sum(whole(counts.get(name)) for name in ends)
    return RemoteBatch(id=id_, status=status, ended=ended, results=results)
