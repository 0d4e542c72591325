"""
Defines the protocol of a provider and the errors of its calls.

Transient
├── Unsent        the provider did not receive the call: repeat it
├── Busy(wait_s)  the provider did nothing and asks to wait: repeat the call later
├── Absent        the batch or file does not exist, or not yet
├── NotReady      the uploaded file cannot be used yet: submit again
└── Unclear       the provider may have acted on the call: look before repeating it
    └── BrokenOff the status was a success, and the rest cannot be read
Permanent
├── BatchesUnsupported  the endpoint has no batches
├── Denied              the provider refused the key
└── Refused(code)       the provider refused the content
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from worker.errors import Permanent, Transient
from worker.llm.answers import Answer
from worker.llm.grouping import Group
from worker.llm.requests import StoredRequest
from worker.llm.states import LookupResult

_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{3,64}")


class Unsent(Transient):
    """The provider did not receive the request."""


class Busy(Transient):
    """The provider did nothing and asks to wait; `wait_s` is the requested time, or None."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Absent(Transient):
    """No such batch or file; a new one may not be found at once."""


class NotReady(Transient):
    """The uploaded file cannot be used yet; `refusal` is what it means if that never changes."""

    def __init__(self, refusal: Permanent) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Unclear(Transient):
    """The provider may have received the request and acted on it."""


class BrokenOff(Unclear):
    """A success whose response cannot be read: it is paid for, and its answer is lost."""


class BatchesUnsupported(Permanent):
    """The endpoint has no batches; its requests are sent as direct calls."""


class Denied(Permanent):
    """The provider refused the key: it is wrong or revoked."""


class Refused(Permanent):
    """The provider refused the content and did nothing; `code` is its error code."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """
    A batch as the provider reports it; `files` may be read in any order.

    `failed`: the provider refused the whole batch and did nothing; `code` (its error
    code) and `error` are its reasons. `bad_lines`: 1-based line -> message, for lines
    that the provider named as the reason. `results`: how many result lines it counts, 0 if
    it does not.
    """

    id: str
    status: str
    ended: bool
    files: tuple[str, ...] = ()
    failed: bool = False
    error: str = ""
    code: str = ""
    bad_lines: Mapping[int, str] = field(default_factory=dict)
    results: int = 0


class Lines:
    """
    Streams a batch's requests, one page in memory at a time.

    `count` and `size` (bytes of ids and bodies) are computed in advance. If a
    request is answered while the batch is sent, `changed` becomes true.
    """

    def __init__(
        self,
        batch_id: str,
        endpoint: str,
        pages: Callable[[], AsyncIterator[list[StoredRequest]]],
        *,
        count: int,
        size: int,
    ) -> None:
        self.batch_id = batch_id
        self.endpoint = endpoint
        self.count = count
        self.size = size
        self.changed = False
        self._pages = pages

    def custom_id(self, request_id: str) -> str:
        """The custom id of a request in this batch: at most 64 characters of [A-Za-z0-9_-]."""
        return f"{request_id}-{self.batch_id}"

    def total(self, around: int) -> int:
        """The total size in bytes, if each line has `around` bytes besides custom id and body."""
        return self.size + self.count * (around + 1 + len(self.batch_id))

    async def pages(
        self, line: Callable[[str, bytes], bytes], *, between: bytes = b""
    ) -> AsyncIterator[bytes]:
        """Yield `line(custom_id, body)` of every request, one chunk per page."""
        seen = 0
        async for page in self._pages():
            chunk = between.join(line(self.custom_id(r.id), r.body) for r in page)
            glue = between if seen and page else b""
            seen += len(page)
            yield glue + chunk
        if seen != self.count:
            self.changed = True
            raise Unsent("a request of the batch was answered while it was sent")


def split_custom_id(custom_id: str) -> tuple[str, str]:
    """Split a custom id into request id and batch id; the latter is "" when it is not ours."""
    request_id, dash, batch_id = custom_id.rpartition("-")
    is_ours = dash and _CUSTOM_ID.fullmatch(custom_id)
    return (request_id, batch_id) if is_ours else (custom_id, "")


class Provider(Protocol):
    """One endpoint and key. Every call may raise Transient or Permanent, as drawn above."""

    @property
    def uploads(self) -> bool:
        """Whether a batch's input is uploaded before it is submitted."""

    async def complete(self, group: Group, body: bytes) -> Answer:
        """Answer one request by a direct call."""

    async def upload(self, lines: Lines) -> str:
        """Upload a batch's input; returns the file's id. A second copy does no harm."""

    async def submit(self, group: Group, lines: Lines, *, file_id: str) -> RemoteBatch:
        """
        Submit a batch. After `Unclear`, call `find` before you call this again.

        Raises:
            BatchesUnsupported, Permanent, Unsent, Busy, NotReady, Unclear.
        """

    async def find(
        self, batch_id: str, *, since_ms: int, count: int, taken: Collection[str]
    ) -> LookupResult:
        """
        Look up a submission of ours, begun at `since_ms`, with `count` requests.

        `taken`: provider ids that belong to other batches.
        """

    async def read(self, provider_id: str) -> RemoteBatch:
        """Read a batch; Transient while a new one is not found yet."""

    async def cancel(self, provider_id: str) -> RemoteBatch:
        """Request a batch's cancellation; finished results can be read after its end."""

    async def delete_files(
        self, batch_id: str, file_ids: Collection[str], *, since_ms: int | None
    ) -> int:
        """
        Delete files; with `since_ms` also every input of this batch that was uploaded since then.

        Returns how many; files that do not exist count as deleted.
        """

    def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        """Stream custom id and answer of every line, in any order."""
