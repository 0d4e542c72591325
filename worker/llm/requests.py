"""
Stores LLM requests and their answers in Redis.

A request waits in its group's list, belongs to a batch, or has its own job. Its
answer is stored once, and a message on one channel wakes the callers that wait
for it in any process. docs/states.md shows the states.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from cache.connection.scripts import Script, load
from cache.encoding import codec
from cache.errors import CodecError, NotEncodable
from cache.logs import get_logger
from worker.errors import InvalidArgument, Undecodable
from worker.keys import LLM_USAGE_TTL_S, QueueKeys
from worker.llm.answers import CANCELED, Answer, read_usage
from worker.llm.grouping import Group, LLMRequest, checked_group
from worker.llm.options import FlushRules, Retention
from worker.numbers import whole
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority

log = get_logger(__name__)

_SUBMIT = load(__package__, "submit_llm", "..queue")
_SUBMIT_URGENT = load(__package__, "submit_llm_urgent", "..queue")
_ANSWER = load(__package__, "answer_llm", "..queue")
_CALLBACKS = load(__package__, "callbacks_llm", "..queue")
_CANCEL = load(__package__, "cancel_llm", "..queue")
_RETRY = load(__package__, "retry_llm", "..queue")

# Jobs that one call of callbacks_llm.lua enqueues: it occupies the server for about 1 ms.
_CALLBACKS_A_STEP = 100
# Prefixes of stored answers. `z`: zlib, for larger answers. `s`, before the others: shared by
# several callers (_llm_finish.lua). `j`: JSON, for what msgpack cannot encode (integers over 64
# bits, lone surrogates). A msgpack list starts with none of these bytes.
_COMPRESS_FROM, _COMPRESSED, _SHARED, _JSON = 8192, b"z", b"s", b"j"
# A larger answer is not stored. Data that would compress by more than 32:1 is stored plain, so that
# the stored size bounds the reader's memory.
_MOST_ANSWER, _MOST_RATIO, _ANY_RATIO_BELOW = 67_108_864, 32, 1_048_576
_TOO_LARGE = Answer(
    kind="response_too_large", message=f"the encoded answer is over {_MOST_ANSWER} bytes"
)
_UNREADABLE = Answer(kind="unreadable", message="the stored answer cannot be decoded")


@dataclass(frozen=True, slots=True)
class Callback:
    """The receiver of a request's end, and the body of the job that notifies it."""

    who: str
    body: bytes


NOBODY = Callback("", b"")


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """
    A request without an answer.

    `deadline_ms` is the earliest deadline of its callers, None if none has one;
    `expires_ms` the latest, None if one caller has none. Both are Unix milliseconds.
    """

    id: str
    group: Group
    body: bytes
    deadline_ms: int | None
    tokens: int
    urgent: bool
    expires_ms: int | None = None


def split_request_id(request_id: str) -> tuple[str, str]:
    """Split a caller's id into the request's id and the caller's suffix ("" for the first caller)."""
    id_, _, suffix = request_id.partition(".")
    return id_, suffix


class RequestStore:
    """Stores requests and answers through one client. `most_jobs` limits the queue; 0 is no limit."""

    def __init__(
        self, client: Any, keys: QueueKeys, retention: Retention, *, most_jobs: int = 0
    ) -> None:
        self.client = client
        self.keys = keys
        self.retention = retention
        self.most_jobs = most_jobs

    async def submit(
        self,
        requests: Sequence[tuple[str, LLMRequest]],
        *,
        flush_now: PreparedJob,
        flush_later: PreparedJob,
        rules: FlushRules,
        dedupe: bool,
        deadline_ms: int | None,
        callback: Callback = NOBODY,
    ) -> list[str]:
        """Store at most 500 requests of one group; returns the callers' ids."""
        keys, group = self.keys, requests[0][1].group
        group_id = group.id
        names = [keys.queue(Priority.DEFAULT), keys.wake]
        for job in (flush_now, flush_later):
            names += [keys.job(job.id), keys.result(job.id)]
        args: list[Any] = [
            keys.llm,
            group_id,
            encode_group(group),
            int(dedupe),
            "" if deadline_ms is None else deadline_ms,
            rules.max_requests,
            rules.max_bytes,
            rules.max_tokens,
            rules.max_age_ms,
            flush_now.id,
            flush_now.body,
            flush_later.id,
            flush_later.body,
            callback.who,
            callback.body,
        ]
        for request_id, request in requests:
            digest = request.digest(group_id) if dedupe else ""
            args += (request_id, digest, request.body, request.tokens)
        answered: list[bytes] = await _SUBMIT.run(self.client, names, args)
        return [id_.decode() for id_ in answered]

    async def submit_urgent(
        self,
        request_id: str,
        request: LLMRequest,
        *,
        job: PreparedJob,
        job_keys: list[str],
        deadline_ms: int | None,
        callback: Callback = NOBODY,
    ) -> str:
        """Store a request with its own job."""
        keys = self.keys
        names = [keys.llm_request(request_id), keys.llm_result(request_id), *job_keys]
        names += [keys.llm_single, keys.llm_callback(request_id)]
        args = [
            request_id,
            request.body,
            request.group.id,
            encode_group(request.group),
            "" if deadline_ms is None else deadline_ms,
            request.tokens,
            job.id,
            job.body,
            callback.who,
            callback.body,
        ]
        await _SUBMIT_URGENT.run(self.client, names, args)
        return request_id

    async def read(self, request_id: str) -> StoredRequest | None:
        """The request; None when it is answered or unknown."""
        names = ("body", "deadline", "group", "tokens", "single", "expires")
        request_id, _ = split_request_id(request_id)
        row = await self.client.hmget(self.keys.llm_request(request_id), *names)
        if row[0] is None:
            return None
        return StoredRequest(
            id=request_id,
            group=decode_group(row[2]),
            body=row[0],
            deadline_ms=whole(row[1]) or None,
            tokens=whole(row[3]),
            urgent=row[4] == b"urgent",
            expires_ms=whole(row[5]) or None,
        )

    async def send_callbacks(self) -> bool:
        """
        Enqueue the callbacks of ended requests. Returns False while the queue is full.

        The next end of a request, or the rescuer, continues.
        """
        names = [self.keys.llm_callbacks, *(self.keys.queue(priority) for priority in Priority)]
        args = [self.keys.llm, self.most_jobs, _CALLBACKS_A_STEP]
        code = 1
        while code == 1:
            # A key of another type is logged and counts as a full queue.
            (code,) = await run_many(self.client, _CALLBACKS, [(names, args)], refused=-1)
        return code == 0

    async def answer(self, request_id: str, answer: Answer) -> bool:
        """Store an answer and wake its callers; returns False when one is stored already."""
        return bool(await self.answer_many([(request_id, answer)]))

    async def answer_many(self, answers: Sequence[tuple[str, Answer]], *, line_of: str = "") -> int:
        """
        Store answers in one round trip; returns how many are new.

        `line_of`: the batch whose results they are; it can answer only requests that it contained.
        """
        calls = [
            ([self.keys.llm_request(id_)], [*self._answer_args(id_, answer), line_of])
            for id_, answer in answers
        ]
        codes = await run_many(self.client, _ANSWER, calls)
        if 2 in codes:
            await self.send_callbacks()
        return sum(code > 0 for code in codes)

    def _answer_args(self, request_id: str, answer: Answer) -> list[Any]:
        usage = read_usage(answer.body) if answer.ok else read_usage(None)
        data = encode_answer(answer)
        ok = answer.ok and data is not _TOO_LARGE_DATA
        return [
            self.keys.llm,
            request_id,
            data,
            int(ok),
            int(self.retention.unread_s * 1000),
            int(self.retention.equal_s * 1000),
            LLM_USAGE_TTL_S * 1000,
            usage.input,
            usage.output,
            usage.cached,
            usage.reasoning,
        ]

    async def read_answer(self, request_id: str) -> Answer | None:
        """Return a request's answer; the first read of an unshared answer shortens its lifetime."""
        key, keep = self.keys.llm_result(split_request_id(request_id)[0]), self.retention
        data: bytes | None = await self.client.get(key)
        if data is None:
            return None
        read_s = max(keep.read_s, keep.equal_s)
        if read_s < keep.unread_s and not data.startswith(_SHARED):
            await self.client.pexpire(key, int(read_s * 1000), lt=True)
        return decode_answer(data)

    async def peek_answer(self, request_id: str) -> Answer | None:
        """Return a request's answer without changing its lifetime."""
        id_, _ = split_request_id(request_id)
        data = await self.client.get(self.keys.llm_result(id_))
        return None if data is None else decode_answer(data)

    async def is_open(self, request_id: str) -> bool:
        """Whether the request is known and has no answer."""
        id_, _ = split_request_id(request_id)
        return bool(await self.client.exists(self.keys.llm_request(id_)))

    async def cancel(self, request_id: str, *, everybody: bool = False) -> tuple[int, str]:
        """
        Cancel a request for the caller with this id, or for all callers.

        Returns (code, batch id or ""); code 0: unknown, 1: other callers still wait, 2: it ended.
        """
        id_, suffix = split_request_id(request_id)
        args = [
            self.keys.llm,
            id_,
            encode_answer(CANCELED),
            int(self.retention.unread_s * 1000),
            LLM_USAGE_TTL_S * 1000,
            suffix,
            int(everybody),
        ]
        code, batch = await _CANCEL.run(self.client, [self.keys.llm_request(id_)], args)
        if code == 3:
            await self.send_callbacks()
        return min(2, code), batch.decode()

    async def retry(
        self, request_ids: Sequence[str], *, job: PreparedJob, job_keys: list[str]
    ) -> int:
        """Return failed requests to the waiting list; returns how many."""
        keys = self.keys
        calls = [
            (
                [keys.llm_failed(id_), keys.llm_request(id_), keys.llm_result(id_), *job_keys],
                [keys.llm, id_, job.id, job.body],
            )
            for id_ in request_ids
        ]
        return sum(await run_many(self.client, _RETRY, calls))


def is_wrong_type(error: BaseException) -> bool:
    """Whether a key is not what this service stores under its name."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


async def run_many(
    client: Any,
    script: Script,
    calls: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    *,
    refused: int = 0,
) -> list[int]:
    """
    Run a script once for each (keys, args) in one round trip; the numbers it returned.

    A call that a key of another type refused counts as `refused`, and stops no other.
    """
    if not calls:
        return []
    async with client.pipeline(transaction=False) as pipe:
        for keys, args in calls:
            pipe.evalsha(script.sha, len(keys), *keys, *args)
        replies = await pipe.execute(raise_on_error=False)
    for number, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            replies[number] = await script.run(client, *calls[number])
        elif isinstance(reply, RedisError):
            if not is_wrong_type(reply):
                raise reply
            log.error("llm.keys_unreadable", error=str(reply)[:200])
            replies[number] = refused
    return [int(reply) for reply in replies]


def encode_answer(answer: Answer) -> bytes:
    row = [answer.body, answer.kind, answer.message]
    try:
        data = codec.encode(row)
    except NotEncodable:
        data = _as_json(row)
    if len(data) > _MOST_ANSWER:
        return _TOO_LARGE_DATA
    if len(data) < _COMPRESS_FROM:
        return data
    packed = zlib.compress(data, 1)
    return data if len(data) > _most_inflated(packed) else _COMPRESSED + packed


def _most_inflated(packed: bytes | memoryview) -> int:
    return min(_MOST_ANSWER, max(_ANY_RATIO_BELOW, _MOST_RATIO * len(packed)))


_TOO_LARGE_DATA = codec.encode([None, _TOO_LARGE.kind, _TOO_LARGE.message])


def _as_json(row: list[Any]) -> bytes:
    try:
        return _JSON + json.dumps(row, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        reason = f"the answer cannot be stored: {type(exc).__name__}"
        return codec.encode([None, "unstorable", reason])


def decode_answer(data: bytes) -> Answer:
    """Decode the bytes of `encode_answer`; anything else becomes an answer of kind `unreadable`."""
    data = data.removeprefix(_SHARED)
    try:
        if data.startswith(_COMPRESSED):
            inflater, packed = zlib.decompressobj(), memoryview(data)[1:]
            data = inflater.decompress(packed, _most_inflated(packed))
            if not inflater.eof:
                return _UNREADABLE
        is_json = data.startswith(_JSON)
        body, kind, message = json.loads(data[1:]) if is_json else codec.decode(data)
        return Answer(body, str(kind), str(message))
    except (zlib.error, CodecError, TypeError, ValueError, RecursionError):
        return _UNREADABLE


@lru_cache(maxsize=1024)
def encode_group(group: Group) -> bytes:
    return codec.encode([group.provider, group.endpoint, group.model])


@lru_cache(maxsize=1024)
def decode_group(data: bytes) -> Group:
    """
    Decode and check a stored group. It is checked because its endpoint is called with our key.

    Raises:
        Undecodable: it is no group, or one that this service would not have stored.
    """
    try:
        provider, endpoint, model = codec.decode(data)
        return checked_group(provider, endpoint, model)
    except (CodecError, InvalidArgument, TypeError, ValueError) as exc:
        raise Undecodable(f"a stored group cannot be used: {exc}") from None
