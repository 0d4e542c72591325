"""
An OpenAI-compatible endpoint: single calls, and batches where it has them.

Batches: POST /files (JSONL), POST /batches, GET /batches/{id}, GET
/files/{id}/content. `POST /batches` has no idempotency key, so every batch
carries our id in its metadata and can be found again by it.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import httpx

from worker.errors import Permanent, Transient
from worker.llm.answers import Answer, is_transient, read_item, read_response
from worker.llm.grouping import Group
from worker.llm.providers.bounded import ResponseTooLarge
from worker.llm.providers.calls import (
    DEFAULT_MAX_BYTES,
    Wire,
    checked,
    json_of,
    retry_after_s,
)
from worker.llm.providers.protocol import Absent, BatchesUnsupported, Busy, Lines, RemoteBatch
from worker.llm.states import Sighting

_BATCH_TAG = "letta_redis_batch"
_LIST_PAGE = 100
_FILES_PAGE = 1000
_ERROR_CHARS = 300
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
# Our clock and the provider's may differ by this.
_SKEW_MS = 300_000


class OpenAIProvider:
    """One base URL (it ends in /v1) and key. `timeout_s` limits each call whole."""

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
        self._wire = Wire(
            client,
            base_url=base_url,
            headers=headers,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
        )

    async def complete(self, group: Group, body: bytes) -> Answer:
        headers = {"content-type": "application/json"}
        try:
            reply = await self._wire.call("POST", group.path, content=body, headers=headers)
        except ResponseTooLarge as exc:
            return too_large(exc)
        return read_single(reply)

    async def upload(self, lines: Lines) -> str:
        # Written out here, since httpx's own multipart reads a file whole.
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{_file_name(lines.batch_id)}"\r\nContent-Type: application/jsonl\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        # The endpoint is the same in every line, and its bytes are known before.
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
        reply = await self._wire.call(
            "POST", "/files", size=size, content=content(), headers=headers
        )
        return str(checked(reply, absent=BatchesUnsupported)["id"])

    async def submit(self, group: Group, lines: Lines, *, file_id: str) -> RemoteBatch:
        reply = await self._wire.call(
            "POST",
            "/batches",
            json={
                "input_file_id": file_id,
                "endpoint": group.endpoint,
                "completion_window": "24h",
                "metadata": {_BATCH_TAG: lines.batch_id},
            },
        )
        return _remote(checked(reply, absent=BatchesUnsupported))

    async def find(
        self,
        batch_id: str,
        *,
        since_ms: int,
        count: int,  # noqa: ARG002  (the tag says it all)
        taken: Collection[str],  # noqa: ARG002
    ) -> Sighting:
        after: str | None = None
        while True:
            query = {"limit": str(_LIST_PAGE), **({"after": after} if after else {})}
            try:
                reply = await self._wire.call("GET", "/batches", params=query)
                page = checked(reply, absent=Permanent)
            except Permanent:
                return Sighting(complete=False)  # there is no list to look at
            rows = page.get("data") or []
            for row in rows:
                if (row.get("metadata") or {}).get(_BATCH_TAG) == batch_id:
                    return Sighting(str(row["id"]))
            if not page.get("has_more") or not rows or _is_older(rows[-1], since_ms - _SKEW_MS):
                return Sighting()
            after = rows[-1]["id"]

    async def read(self, provider_id: str) -> RemoteBatch:
        return _remote(checked(await self._wire.call("GET", f"/batches/{provider_id}")))

    async def cancel(self, provider_id: str) -> RemoteBatch:
        try:
            reply = await self._wire.call("POST", f"/batches/{provider_id}/cancel")
            return _remote(checked(reply))
        except Permanent:
            # It has ended, which is as good.
            return await self.read(provider_id)

    async def delete_files(
        self, batch_id: str, file_ids: Collection[str], *, since_ms: int | None
    ) -> int:
        ids = set(file_ids)
        if since_ms is not None:
            ids |= await self._inputs(batch_id, since_ms)
        for id_ in ids:
            with contextlib.suppress(Absent):
                checked(await self._wire.call("DELETE", f"/files/{id_}"))
        return len(ids)

    async def _inputs(self, batch_id: str, since_ms: int) -> set[str]:
        """Files that were uploaded as this batch's input."""
        found: set[str] = set()
        query = {"purpose": "batch", "order": "desc", "limit": str(_FILES_PAGE)}
        while True:
            page = checked(await self._wire.call("GET", "/files", params=query))
            rows = page.get("data") or []
            found |= {str(row["id"]) for row in rows if row.get("filename") == _file_name(batch_id)}
            if not page.get("has_more") or not rows or _is_older(rows[-1], since_ms - _SKEW_MS):
                return found
            query["after"] = str(rows[-1]["id"])

    async def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        for file_id in remote.files:
            async for row in self._wire.lines(f"/files/{file_id}/content"):
                yield str(row.get("custom_id")), read_item(row)


def too_large(exc: ResponseTooLarge) -> Answer:
    """Asked again it would be paid for again, and be as large."""
    return Answer(kind="response_too_large", message=str(exc))


def read_single(reply: httpx.Response) -> Answer:
    """
    The answer of a synchronous endpoint.

    Raises:
        Busy, Transient: another time it may answer.
    """
    status = reply.status_code
    if status in {429, 529}:
        raise Busy(f"the provider answered {status}", retry_after_s(reply.headers))
    if is_transient(status):
        raise Transient(f"the provider answered {status}")
    return read_response(status, json_of(reply))


def _file_name(batch_id: str) -> str:
    return f"{batch_id}.jsonl"


def _line(custom_id: str, body: bytes, endpoint: str) -> bytes:
    # The body is JSON already; decoding it only to encode it again would double the work.
    head = f'{{"custom_id":"{custom_id}","method":"POST","url":{json.dumps(endpoint)},"body":'
    return head.encode() + body + b"}\n"


def _is_older(row: Mapping[str, Any], than_ms: int) -> bool:
    created = row.get("created_at")
    return isinstance(created, int) and created * 1000 < than_ms


def _remote(row: Mapping[str, Any]) -> RemoteBatch:
    status = str(row.get("status"))
    files = (row.get("output_file_id"), row.get("error_file_id"))
    errors = (row.get("errors") or {}).get("data") or []
    text = "; ".join(str(e.get("message") or e.get("code")) for e in errors[:3])
    return RemoteBatch(
        id=str(row["id"]),
        status=status,
        ended=status in _ENDED,
        # error_file_id may be empty text as well as absent.
        files=tuple(str(name) for name in files if name),
        failed=status == "failed",
        error=text[:_ERROR_CHARS],
        code=str(errors[0].get("code") or "") if errors else "",
        bad_lines={
            int(e["line"]): str(e.get("message") or e.get("code"))[:_ERROR_CHARS]
            for e in errors
            if isinstance(e.get("line"), int)
        },
    )
