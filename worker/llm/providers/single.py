"""
Reads the reply of a direct call.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from worker.errors import Transient
from worker.llm.answers import (
    Answer,
    LongText,
    clipped,
    is_transient,
    no_answer,
    read_response,
    unreadable,
    unwrapped,
)
from worker.llm.json_text import Slow, UnreadableJSON, decode_at_once
from worker.llm.providers.bounded import ResponseTooLarge
from worker.llm.providers.calls import answered, json_of, retry_after_s
from worker.llm.providers.open_row import ResultRow
from worker.llm.providers.protocol import BrokenOff, Busy
from worker.llm.providers.result_rows import read_object

# What may stand around the answer.
_AROUND = b"\xef\xbb\xbf \t\r\n\0"
_SHOWN_CHARS, _KIND_CHARS = 300, 100


def lost(exc: ResponseTooLarge | BrokenOff) -> Answer:
    """
    The answer for a success that cannot be read.

    A reply over the limit is final: a retry would be paid again and be as large.
    """
    if isinstance(exc, ResponseTooLarge):
        return Answer(kind="response_too_large", message=str(exc))
    return no_answer(str(exc))


async def read_single(reply: httpx.Response) -> Answer:
    """
    Read the answer of a direct call.

    Raises:
        Busy, Transient: a later attempt may succeed.
    """
    status = reply.status_code
    if status in {429, 529}:
        raise Busy(answered(reply), retry_after_s(reply.headers))
    if is_transient(status):
        raise Transient(answered(reply))
    content = reply.content.strip(_AROUND)
    if reply.is_success and content.startswith(b"{"):
        return await _read_object(content)
    is_text = not reply.is_success or content.startswith(b'"')
    body = unwrapped(json_of(reply)) if is_text else None
    if not reply.is_success or isinstance(body, Mapping):
        return read_response(status, body)
    kind = clipped(reply.headers.get("content-type", "no content type"), _KIND_CHARS)
    return no_answer(f"{status} with {kind}: {clipped(reply.text, _SHOWN_CHARS)!r}")


async def _read_object(content: bytes) -> Answer:
    try:
        return Answer(body=decode_at_once(content))
    except Slow:
        row = await read_object(content)
    except UnreadableJSON:
        row = ResultRow(None, len(content), text=content)
    if row.row is None:
        return unreadable("the provider's answer is not JSON", row.text)
    return Answer(body=row.row, text=row.text if isinstance(row.text, LongText) else None)
