"""Makes HTTP calls to a provider, each with one deadline, and classifies their failures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx

from worker.errors import Permanent, TargetForbidden, Transient
from worker.http.client import describe
from worker.http.response import StatusLine, noted
from worker.http.scrub import scrub, spellings
from worker.llm.answers import clipped, is_transient, read_response
from worker.llm.json_text import UnreadableJSON, decode
from worker.llm.providers.bounded import pieces, read_within
from worker.llm.providers.open_row import ResultRow
from worker.llm.providers.protocol import Absent, BrokenOff, Busy, Denied, Refused, Unclear, Unsent
from worker.llm.providers.result_rows import rows_in

_ERROR_CHARS = 300
_MOST_WAIT_S = 3600.0
# A large body gets more time: one second for each of these.
_BYTES_A_SECOND = 1_000_000
_MOST_REDIRECTS = 5
# Only the message of a refusal is needed.
_MOST_ERROR_BYTES = 65_536
DEFAULT_MAX_BYTES = 16_777_216
# Statuses that concern the request's content.
_REFUSED = frozenset({400, 413, 422})
# How a call fails. aiohttp's own errors pass through httpx where a response cannot be parsed.
_FAILURES = (httpx.HTTPError, aiohttp.ClientError, TimeoutError, OSError)
# Failures before the request was sent.
_UNSENT = frozenset({"dns", "connect", "tls"})


class ProviderCalls:
    """
    Calls to one base URL with its headers, through one guarded client.

    `timeout_s` limits each whole call, `max_bytes` the bytes read of its reply.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._origin = _origin(httpx.URL(self._base_url))
        self._headers = dict(headers)
        names = ("authorization", "x-api-key")
        self._hidden = spellings(headers[name] for name in names if name in headers)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def call(self, method: str, path: str, *, size: int = 0, **parts: Any) -> httpx.Response:
        """
        Make one call; `size` is the body's length in bytes.

        Raises:
            Unsent, Unclear.
            BrokenOff: the status was a success; also an Unclear.
            ResponseTooLarge: the reply is over `max_bytes`; also an Unclear.
            TargetForbidden: the path leads to another host than the base URL's.
        """
        url = self._url(path)
        headers = {**self._headers, **parts.pop("headers", {})}
        line = StatusLine()
        noting = noted.set(line)
        try:
            async with (
                asyncio.timeout(self._timeout_s + size / _BYTES_A_SECOND),
                self._client.stream(method, url, headers=headers, **parts) as reply,
            ):
                return await _whole(reply, self._max_bytes, self._hidden)
        except _FAILURES as exc:
            error = describe(exc)
            if line.status is not None and 200 <= line.status < 300:
                raise BrokenOff(f"{line.status} with a response that broke off: {error}") from None
            kind = Unsent if error in _UNSENT else Unclear
            raise kind(f"the provider cannot be reached: {error}") from None
        finally:
            noted.reset(noting)

    async def rows(self, path: str) -> AsyncIterator[ResultRow]:
        """
        Stream the rows of a results file; `timeout_s` limits the pause between two pieces.

        Redirects to a storage are followed, without our key on another host.
        """
        url = self._url(path)
        try:
            for _ in range(_MOST_REDIRECTS):
                headers = self._headers if _origin(url) == self._origin else {}
                async with self._client.stream("GET", url, headers=headers) as reply:
                    if reply.has_redirect_location:
                        url = _redirected(url, reply)
                        continue
                    await self._check_results(url, reply)
                    async for row in rows_in(pieces(reply, self._timeout_s), self._hidden):
                        yield row
                    return
            raise Transient(f"reading results: more than {_MOST_REDIRECTS} redirects")
        except TargetForbidden as exc:
            if _origin(url) == self._origin:
                raise
            # The results are paid for, and the operator can allow their storage.
            raise Transient(f"reading results: {exc} (LETTA_LLM_ALLOW_CIDRS)") from None
        except _FAILURES as exc:
            raise Transient(f"reading results: {describe(exc)}") from None

    async def _check_results(self, url: httpx.URL, reply: httpx.Response) -> None:
        if reply.is_success and reply.status_code != 202:
            return
        if reply.status_code == 202:
            raise Transient("reading results: they are not ready (202)")
        async with asyncio.timeout(self._timeout_s):
            whole = await _whole(reply, self._max_bytes, self._hidden)
        if _origin(url) != self._origin and reply.status_code != 404:
            # Its refusal is not about our key: a new redirect may be valid again.
            raise Transient(f"reading results: {url.host} answered {reply.status_code}")
        checked(whole)

    def _url(self, path: str) -> httpx.URL:
        """Join base URL and path; refuses another host, because the key is sent with the call."""
        try:
            url = httpx.URL(self._base_url + path)
        except httpx.InvalidURL:
            raise TargetForbidden("the provider's path", "it is not a valid URL path") from None
        if not path.startswith("/") or _origin(url) != self._origin:
            raise TargetForbidden(url.host, "it is not the host of the provider's base URL")
        return url


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None, bytes]:
    return url.scheme, url.raw_host, url.port, url.userinfo


async def _whole(reply: httpx.Response, limit: int, hidden: tuple[bytes, ...]) -> httpx.Response:
    """Read the reply's body within the limit and remove our keys from it."""
    if reply.status_code < 300:
        body = await read_within(reply, limit)
    else:
        body = await read_within(reply, min(limit, _MOST_ERROR_BYTES), cut=True)
    # As bytes: httpx decodes them from Latin-1, but encodes text as ASCII only.
    headers = [(k, v) for k, v in reply.headers.raw if k.lower() not in _OF_THE_BODY]
    return httpx.Response(
        reply.status_code, headers=headers, content=scrub(body, hidden), request=reply.request
    )


_OF_THE_BODY = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


def _redirected(url: httpx.URL, reply: httpx.Response) -> httpx.URL:
    try:
        target = url.join(reply.headers["location"])
    except (httpx.InvalidURL, ValueError):
        raise Transient("reading results: a redirect to an invalid URL") from None
    if target.scheme not in {"https", url.scheme}:
        raise Transient("reading results: a redirect away from https")
    return target


def checked(reply: httpx.Response, *, absent: type[Exception] = Absent) -> Mapping[str, Any]:
    """
    Return a reply's JSON object.

    Raises:
        Busy: the provider asked to wait.
        Unclear: the provider failed.
        Refused: it refused the content.
        Denied: it refused the key.
        Permanent: it refused for another reason.
        absent: not found; a new batch may not be found at once.
    """
    status = reply.status_code
    if status in {429, 529}:
        raise Busy(answered(reply), retry_after_s(reply.headers))
    if is_transient(status) and status != 501:
        raise Unclear(answered(reply))
    data = _decode(reply.content)
    if 200 <= status < 300 and isinstance(data, Mapping):
        return data
    if status in {404, 405, 501}:
        raise absent(f"{reply.request.url.path} answered {status}")
    if 200 <= status < 300:
        raise Unclear("the provider's answer is not JSON")
    answer = read_response(status, data)
    message = f"the provider answered {status}: {answer.message[:_ERROR_CHARS]}"
    if status in _REFUSED:
        raise Refused(message, answer.kind)
    if status in {401, 403}:
        raise Denied(message)
    raise Permanent(message)


def answered(reply: httpx.Response) -> str:
    """A failed call's status and the provider's words, for the operator. No page of a proxy."""
    words = " ".join(said(reply).split())
    shown = "" if words.startswith("<") else f": {words}"
    return f"the provider answered {reply.status_code}{shown}".removesuffix(": ")


def said(reply: httpx.Response) -> str:
    """The words of a refusal: its error's code and message, or the beginning of what came."""
    data = _decode(reply.content)
    error = data.get("error") if isinstance(data, Mapping) else None
    found = error if isinstance(error, Mapping) else data if isinstance(data, Mapping) else {}
    names = ("code", "message", "detail", "error")
    words = [clipped(found[name], _ERROR_CHARS) for name in names if found.get(name)]
    return ": ".join(words) or clipped(reply.text, _ERROR_CHARS)


def retry_after_s(headers: httpx.Headers) -> float | None:
    """The seconds that the provider asks to wait; None without a valid header."""
    wait_s = _number(headers.get("retry-after-ms"), 1000)
    if wait_s is None:
        wait_s = _number(headers.get("retry-after"), 1)
    if wait_s is None:
        try:
            then = parsedate_to_datetime(headers["retry-after"])
            sent = parsedate_to_datetime(headers["date"])
            wait_s = (then - sent).total_seconds()
        except (KeyError, ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(wait_s, 0.0), _MOST_WAIT_S)


def _number(text: str | None, per_second: int) -> float | None:
    try:
        value = float(text or "") / per_second
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _decode(data: bytes) -> Any:
    try:
        return decode(data)
    except UnreadableJSON:
        return None


def json_of(reply: httpx.Response) -> Any:
    """A reply's JSON, or None."""
    return _decode(reply.content)
