"""
Reads a provider's reply within a size limit, and decompresses it in small pieces.

Requests ask for no compression. Some gateways compress nevertheless, and the reply
is paid for, so gzip and deflate are accepted, up to the same limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

import httpx

from worker.llm.providers.protocol import Unclear

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PIECE_BYTES = 65_536
# After this many decompressed bytes other tasks of the event loop may run.
_YIELD_BYTES = 1_048_576


class ResponseTooLarge(Unclear):
    """The reply is over the limit; the rest was not read."""


async def read_within(reply: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
    """
    Read a reply's body; with `cut` only its first `limit` bytes.

    Raises:
        ResponseTooLarge: the body is longer.
        httpx.HTTPError: the body ended early, or does not match its Content-Encoding.
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
    """Yield a reply's body in pieces as received, or decompressed pieces of at most 64 KiB."""
    wbits = _WBITS.get(reply.headers.get("content-encoding", "").strip().lower())
    if wbits is None:
        async for piece in reply.aiter_raw():
            yield piece
        return
    inflater, since_yield = zlib.decompressobj(wbits), 0
    async for piece in reply.aiter_raw():
        rest = piece
        while rest and not inflater.eof:
            try:
                data = inflater.decompress(rest, _PIECE_BYTES)
            except zlib.error as exc:
                raise httpx.DecodingError(str(exc), request=reply.request) from None
            rest = inflater.unconsumed_tail
            since_yield += len(data)
            if since_yield >= _YIELD_BYTES:
                # A few received bytes can decompress to many; let other jobs run meanwhile.
                since_yield = 0
                await asyncio.sleep(0)
            yield data
    if not inflater.eof:
        raise httpx.DecodingError("the reply's compressed body ended early", request=reply.request)


async def pieces(reply: httpx.Response, idle_s: float) -> AsyncIterator[bytes]:
    """
    Yield a reply's body as `inflated`; `idle_s` limits the wait for each piece.

    Raises:
        TimeoutError.
    """
    body = inflated(reply)
    while True:
        try:
            async with asyncio.timeout(idle_s):
                piece = await anext(body)
        except StopAsyncIteration:
            return
        yield piece
