"""
What a provider does for us, and how its calls fail.

Transient
├── Unsent        the provider did not receive it: do it again
├── Busy(wait_s)  it refused for now, and did nothing: do it again later
├── Absent        there is no such thing, perhaps not yet
└── Unclear       it may have received it: look before doing it again
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
    """The provider refused for now and did nothing; `wait_s` is what it asked for, if it did."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Absent(Transient):
    """There is no such batch or file; one just created may not be found at once."""


class Unclear(Transient):
    """The provider may have received the request, and acted on it."""


class BatchesUnsupported(Permanent):
    """The endpoint has no batches: its requests go one by one."""


class Denied(Permanent):
    """The provider does not let us in: the key is wrong, or was withdrawn."""


class Refused(Permanent):
    """The provider refused what it was sent, and did nothing; `code` is its word for it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """
    The provider's view of a batch; `files` are read in any order.

    failed: it was refused whole, and nothing of it was done, for the reasons `code`
    (the provider's word) and `error`. bad_lines: 1-based line -> message, where it
    names what it refused it for.
    """

    id: str
    status: str
    ended: bool
    files: tuple[str, ...] = ()
    failed: bool = False
    error: str = ""
    code: str = ""
    bad_lines: Mapping[int, str] = field(default_factory=dict)


class Lines:
    """
    A batch's requests on their way out: a page in memory at a time.

    `count` and `size` (bytes of ids and bodies) were taken before; a request
    that was answered since makes them wrong, and `changed` true.
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
        """Names the request and the batch: at most 64 of [A-Za-z0-9_-]."""
        return f"{request_id}-{self.batch_id}"

    def total(self, around: int) -> int:
        """Bytes of the whole when each line has `around` bytes besides its custom id and body."""
        return self.size + self.count * (around + 1 + len(self.batch_id))

    async def pages(
        self, line: Callable[[str, bytes], bytes], *, between: bytes = b""
    ) -> AsyncIterator[bytes]:
        """`line(custom_id, body)` of every request, a page a chunk."""
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
    """A custom id -> request id, batch id ("" where it is not ours: it may be any text)."""
    request_id, dash, batch_id = custom_id.rpartition("-")
    is_ours = dash and _CUSTOM_ID.fullmatch(custom_id)
    return (request_id, batch_id) if is_ours else (custom_id, "")


class Provider(Protocol):
    """One endpoint and key. Every call may raise Transient (see above) or Permanent."""

    @property
    def uploads(self) -> bool:
        """Whether a batch's input is uploaded before it is submitted."""

    async def complete(self, group: Group, body: bytes) -> Answer:
        """One call of the synchronous endpoint."""

    async def upload(self, lines: Lines) -> str:
        """Upload a batch's input; returns its id. A second copy does no harm."""

    async def submit(self, group: Group, lines: Lines, *, file_id: str) -> RemoteBatch:
        """
        Submit a batch. After `Unclear` look with `find` first, never call this again.

        Raises:
            BatchesUnsupported, Permanent, Unsent, Busy, Unclear.
        """

    async def find(
        self, batch_id: str, *, since_ms: int, count: int, taken: Collection[str]
    ) -> LookupResult:
        """
        Look for a submission of ours: begun at `since_ms`, of `count` requests, none of `taken`.
        """

    async def read(self, provider_id: str) -> RemoteBatch:
        """A batch just created may not be found at once: Transient."""

    async def cancel(self, provider_id: str) -> RemoteBatch:
        """Ask for its end; what was done stays, and can be read when it has ended."""

    async def delete_files(
        self, batch_id: str, file_ids: Collection[str], *, since_ms: int | None
    ) -> int:
        """
        Delete files of ours, and with `since_ms` any input of this batch that was uploaded since
        then; returns how many. What is gone already is as good.
        """

    def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        """Custom id and answer of every line, streamed, in any order."""
