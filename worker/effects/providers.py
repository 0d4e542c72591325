"""
An OpenAI-compatible endpoint: single calls, and batches where it has them.

Batches: POST /files (JSONL), POST /batches, GET /batches/{id}, GET
/files/{id}/content. `POST /batches` has no idempotency key, so every batch
carries our id in its metadata and can be found again by it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from worker.errors import JobError, Permanent, Transient
from worker.policy.batch import Answer, Group, is_transient, read_response

_BATCH_TAG = "letta_redis_batch"
_LIST_PAGE = 100
_ERROR_CHARS = 300


class BatchesUnsupported(Permanent):
    """The endpoint has no /files or /batches: its requests go one by one."""


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """The provider's view of a batch; `output_files` are read in any order."""

    id: str
    status: str
    output_files: tuple[str, ...]
    error: str

    @property
    def ended(self) -> bool:
        return self.status in {"completed", "failed", "expired", "cancelled"}


class OpenAIProvider:
    """One base URL and key, over one guarded client. `timeout_s` limits each call whole."""

    def __init__(
        self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None, timeout_s: float
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    async def complete(self, group: Group, body: bytes) -> Answer:
        """
        One call of the synchronous endpoint.

        Raises:
            Transient: the endpoint is away, overloaded or asks to wait.
        """
        headers = {"content-type": "application/json"}
        reply = await self._send("POST", group.path, content=body, headers=headers)
        if is_transient(reply.status_code):
            raise Transient(f"the provider answered {reply.status_code}")
        return read_response(reply.status_code, _json(reply))

    async def upload(self, name: str, lines: Iterable[bytes]) -> str:
        """Upload a batch's input file; returns its id. A second copy does no harm."""
        files = {"file": (name, b"\n".join(lines), "application/jsonl")}
        reply = await self._send("POST", "/files", data={"purpose": "batch"}, files=files)
        return str(self._checked(reply, absent=BatchesUnsupported)["id"])

    async def create_batch(self, group: Group, file_id: str, tag: str) -> RemoteBatch:
        """
        Submit a batch. After a lost reply call `find_batch` first, never this again.

        Raises:
            BatchesUnsupported, Permanent, Transient.
        """
        reply = await self._send(
            "POST",
            "/batches",
            json={
                "input_file_id": file_id,
                "endpoint": group.endpoint,
                "completion_window": "24h",
                "metadata": {_BATCH_TAG: tag},
            },
        )
        return _remote(self._checked(reply, absent=BatchesUnsupported))

    async def find_batch(self, tag: str) -> RemoteBatch | None:
        """The batch that carries our tag, if its submission reached the provider."""
        after: str | None = None
        while True:
            query = {"limit": str(_LIST_PAGE), **({"after": after} if after else {})}
            page = self._checked(await self._send("GET", "/batches", params=query))
            rows = page.get("data") or []
            for row in rows:
                if (row.get("metadata") or {}).get(_BATCH_TAG) == tag:
                    return _remote(row)
            if not page.get("has_more") or not rows:
                return None
            after = rows[-1]["id"]

    async def read_batch(self, batch_id: str) -> RemoteBatch:
        return _remote(self._checked(await self._send("GET", f"/batches/{batch_id}")))

    async def read_lines(self, file_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """The lines of an output file, streamed. Lines that are not JSON objects are passed over."""
        url = f"{self._base_url}/files/{file_id}/content"
        try:
            async with self._client.stream("GET", url, headers=self._headers) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    self._checked(reply)
                async for line in _bounded_lines(reply, self._timeout_s):
                    row = _loads(line)
                    if isinstance(row, Mapping):
                        yield row
        except (httpx.HTTPError, TimeoutError) as exc:
            raise Transient(f"reading results: {type(exc).__name__}") from None

    async def _send(self, method: str, path: str, **parts: Any) -> httpx.Response:
        headers = {**self._headers, **parts.pop("headers", {})}
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.request(
                    method, self._base_url + path, headers=headers, **parts
                )
        except (httpx.HTTPError, TimeoutError) as exc:
            raise Transient(f"the provider cannot be reached: {type(exc).__name__}") from None

    @staticmethod
    def _checked(reply: httpx.Response, *, absent: type[JobError] = Transient) -> Mapping[str, Any]:
        status = reply.status_code
        if is_transient(status) and status != 501:
            raise Transient(f"the provider answered {status}")
        data = _json(reply)
        if 200 <= status < 300 and isinstance(data, Mapping):
            return data
        if status in {404, 405, 501}:
            # A batch just created may not be found at once; only where one is
            # created does "not found" say that there are no batches here.
            raise absent(f"{reply.request.url.path} answered {status}")
        answer = read_response(status, data)
        raise Permanent(f"the provider answered {status}: {answer.message[:_ERROR_CHARS]}")


async def _bounded_lines(reply: httpx.Response, idle_s: float) -> AsyncIterator[str]:
    """Lines, with a limit on the silence between two: a whole file may take long."""
    lines = reply.aiter_lines()
    while True:
        try:
            async with asyncio.timeout(idle_s):
                line = await anext(lines)
        except StopAsyncIteration:
            return
        yield line


def _remote(row: Mapping[str, Any]) -> RemoteBatch:
    files = (row.get("output_file_id"), row.get("error_file_id"))
    errors = (row.get("errors") or {}).get("data") or []
    text = "; ".join(str(e.get("message") or e.get("code")) for e in errors[:3])
    return RemoteBatch(
        id=str(row["id"]),
        status=str(row.get("status")),
        # error_file_id may be empty text as well as absent.
        output_files=tuple(str(name) for name in files if name),
        error=text[:_ERROR_CHARS],
    )


def _json(reply: httpx.Response) -> Any:
    return _loads(reply.text)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
