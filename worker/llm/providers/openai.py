"""
Calls an OpenAI-compatible endpoint: direct calls, and batches if it has them.

Batches: POST /files (JSONL), POST /batches, GET /batches/{id}, GET
/files/{id}/content. `POST /batches` has no idempotency key, so every batch has
our id in its metadata, by which a lookup finds it.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import httpx

from worker.errors import Permanent, Transient
from worker.llm.answers import FILE_MISSING, Answer
from worker.llm.grouping import Group
from worker.llm.providers.bounded import ResponseTooLarge
from worker.llm.providers.calls import (
    DEFAULT_MAX_BYTES,
    ProviderCalls,
    checked,
    said,
)
from worker.llm.providers.protocol import (
    Absent,
    BatchesUnsupported,
    BrokenOff,
    Lines,
    NotReady,
    Refused,
    RemoteBatch,
)
from worker.llm.providers.result_rows import answers_of
from worker.llm.providers.rows import (
    MOST_PAGES,
    id_of,
    in_path,
    mapping,
    openai_batch,
    page_after,
    rows_of,
    usable_id,
)
from worker.llm.providers.single import lost, read_single
from worker.llm.providers.statuses import is_file_unready
from worker.llm.result_lines import read_item
from worker.llm.states import LookupResult

_BATCH_TAG = "letta_redis_batch"
_LIST_PAGE = 100
_FILES_PAGE = 1000
# Our clock and the provider's may differ by this.
_SKEW_MS = 300_000


class OpenAIProvider:
    """One base URL (it ends in /v1) and key. `timeout_s` limits each whole call."""

    uploads = True

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._calls = ProviderCalls(
            client,
            base_url=base_url,
            headers=headers,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
        )

    async def complete(self, group: Group, body: bytes) -> Answer:
        headers = {"content-type": "application/json"}
        try:
            reply = await self._calls.call("POST", group.path, content=body, headers=headers)
        except (ResponseTooLarge, BrokenOff) as exc:
            return lost(exc)
        return await read_single(reply)

    async def upload(self, lines: Lines) -> str:
        # Built by hand, because httpx's multipart needs the whole file in memory.
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{_file_name(lines.batch_id)}"\r\nContent-Type: application/jsonl\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        # Every line has the same endpoint, so its length is known in advance.
        around = len(_line("", b"", lines.endpoint))
        size = len(head) + lines.total(around) + len(tail)

        async def content() -> AsyncIterator[bytes]:
            yield head
            async for chunk in lines.pages(lambda id_, body: _line(id_, body, lines.endpoint)):
                yield chunk
            yield tail

        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(size),
        }
        reply = await self._calls.call(
            "POST", "/files", size=size, content=content(), headers=headers
        )
        return id_of(checked(reply, absent=BatchesUnsupported), "file")

    async def submit(self, group: Group, lines: Lines, *, file_id: str) -> RemoteBatch:
        reply = await self._calls.call(
            "POST",
            "/batches",
            json={
                "input_file_id": file_id,
                "endpoint": group.endpoint,
                "completion_window": "24h",
                "metadata": {_BATCH_TAG: lines.batch_id},
            },
        )
        try:
            row = checked(reply, absent=BatchesUnsupported)
        except (Refused, BatchesUnsupported) as exc:
            await self._blame(exc, said(reply), file_id)
            raise
        return openai_batch(row, id_of(row, "batch"))

    async def _blame(self, exc: Refused | BatchesUnsupported, words: str, file_id: str) -> None:
        """
        Look at the file before a refused submission is blamed on its requests.

        Raises:
            NotReady: the file is the reason, or the endpoint has batches after all.
        """
        has_none = isinstance(exc, BatchesUnsupported)
        if is_file_unready(await self._row(f"/files/{in_path(file_id)}"), words):
            refusal = Refused(f"{exc}: {words}", FILE_MISSING) if has_none else exc
            raise NotReady(refusal)
        if has_none and await self._row("/batches", limit="1") is not None:
            raise NotReady(Refused(f"{exc}: {words}", FILE_MISSING))

    async def _row(self, path: str, **query: str) -> Mapping[str, Any] | None:
        """What a GET of this path shows; None if that is nothing."""
        try:
            return checked(await self._calls.call("GET", path, params=query), absent=Permanent)
        except (Permanent, Transient):
            return None

    async def find(
        self,
        batch_id: str,
        *,
        since_ms: int,
        count: int,  # noqa: ARG002  (the tag identifies the batch)
        taken: Collection[str],
    ) -> LookupResult:
        after: str | None = None
        for _ in range(MOST_PAGES):
            query = {"limit": str(_LIST_PAGE), **({"after": after} if after else {})}
            try:
                reply = await self._calls.call("GET", "/batches", params=query)
                page = checked(reply, absent=Permanent)
            except Permanent:
                return LookupResult(complete=False)  # the endpoint has no list of batches
            rows = rows_of(page)
            for row in rows:
                is_ours = mapping(row.get("metadata")).get(_BATCH_TAG) == batch_id
                # An earlier submission of this batch was refused, and has its tag too.
                if is_ours and row.get("id") not in taken:
                    return LookupResult(id_of(row, "batch"))
            if not page.get("has_more") or not rows or _is_older(rows[-1], since_ms - _SKEW_MS):
                return LookupResult()
            after = page_after(rows, after)
            if after is None:
                break
        return LookupResult(complete=False)

    async def read(self, provider_id: str) -> RemoteBatch:
        path = f"/batches/{in_path(provider_id)}"
        return openai_batch(checked(await self._calls.call("GET", path)), provider_id)

    async def cancel(self, provider_id: str) -> RemoteBatch:
        try:
            reply = await self._calls.call("POST", f"/batches/{in_path(provider_id)}/cancel")
            return openai_batch(checked(reply), provider_id)
        except Permanent:
            # It has ended already.
            return await self.read(provider_id)

    async def delete_files(
        self, batch_id: str, file_ids: Collection[str], *, since_ms: int | None
    ) -> int:
        ids = set(file_ids)
        if since_ms is not None:
            ids |= await self._inputs(batch_id, since_ms)
        for id_ in ids:
            with contextlib.suppress(Absent):
                checked(await self._calls.call("DELETE", f"/files/{in_path(id_)}"))
        return len(ids)

    async def _inputs(self, batch_id: str, since_ms: int) -> set[str]:
        """Ids of the files that were uploaded as this batch's input."""
        found: set[str] = set()
        query = {"purpose": "batch", "order": "desc", "limit": str(_FILES_PAGE)}
        after: str | None = None
        for _ in range(MOST_PAGES):
            page = checked(await self._calls.call("GET", "/files", params=query))
            rows = rows_of(page)
            named = [row for row in rows if row.get("filename") == _file_name(batch_id)]
            found |= {id_ for row in named if (id_ := usable_id(row.get("id"))) is not None}
            if not page.get("has_more") or not rows or _is_older(rows[-1], since_ms - _SKEW_MS):
                break
            after = page_after(rows, after)
            if after is None:
                break
            query["after"] = after
        return found

    async def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        for file_id in remote.files:
            async for row in self._calls.rows(f"/files/{in_path(file_id)}/content"):
                for pair in answers_of(row, read_item, ("response", "body")):
                    yield pair


def _file_name(batch_id: str) -> str:
    return f"{batch_id}.jsonl"


def _line(custom_id: str, body: bytes, endpoint: str) -> bytes:
    # The body is JSON already; to decode and encode it again would double the work.
    head = f'{{"custom_id":"{custom_id}","method":"POST","url":{json.dumps(endpoint)},"body":'
    return head.encode() + body + b"}\n"


def _is_older(row: Mapping[str, Any], than_ms: int) -> bool:
    created = row.get("created_at")
    return isinstance(created, int) and created * 1000 < than_ms
