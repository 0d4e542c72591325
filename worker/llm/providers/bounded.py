"""
Reads a provider's reply piece by piece, and inflates no more of it than is read.

We ask for no compression. Some gateways compress all the same, and what they send
was paid for, so gzip and deflate are read, in small pieces, up to the same limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

import httpx

from worker.llm.providers.protocol import Unclear

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# Inflated at a time; and between two turns of the event loop.
_PIECE_BYTES = 65_536
_TURN_BYTES = 1_048_576


class ResponseTooLarge(Unclear):
    """The reply is over the limit; the rest of it was not read."""


async def read_within(reply: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
    """
    A reply's body; with `cut` only its first `limit` bytes.

    Raises:
        ResponseTooLarge: it is longer.
        httpx.HTTPError: it broke off, or is not what its Content-Encoding says.
    """
    body = bytearray()
    async for piece in inflated(reply):
        body += piece
        if len(body) > limit:
            if cut:
                break
            raise ResponseTooLarge(
                f"the provider's reply is over {limit} bytes (LETTA_LLM_MAX_RESPONSE_BYTES)"
            )
    return bytes(body[:limit])


async def inflated(reply: httpx.Response) -> AsyncIterator[bytes]:
    """A reply's body in pieces, none larger than what was received or 64 KiB inflated."""
    wbits = _WBITS.get(reply.headers.get("content-encoding", "").strip().lower())
    if wbits is None:
        async for piece in reply.aiter_raw():
            yield piece
        return
    inflater, since_turn = zlib.decompressobj(wbits), 0
    async for piece in reply.aiter_raw():
        rest = piece
        while rest and not inflater.eof:
            try:
                data = inflater.decompress(rest, _PIECE_BYTES)
            except zlib.error as exc:
                raise httpx.DecodingError(str(exc), request=reply.request) from None
            rest = inflater.unconsumed_tail
            since_turn += len(data)
            if since_turn >= _TURN_BYTES:
                # A little of it may become much: other jobs of this worker go on meanwhile.
                since_turn = 0
                await asyncio.sleep(0)
            yield data
    if not inflater.eof:
        raise httpx.DecodingError("the reply's compressed body broke off", request=reply.request)
