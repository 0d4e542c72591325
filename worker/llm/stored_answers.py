"""
Encodes answers for the server, and decodes them within limits.

A stored answer begins with `s` when several callers share it, and with `o` when it is one
caller's and `s` may take that place. Then `z`: zlib, for larger answers; `j`: JSON, for what
msgpack cannot encode (integers over 64 bits, lone surrogates); `f`: frames of the text that came
(worker/llm/frames.py), for an answer too long to be decoded by a worker. Otherwise it is a msgpack
list, which starts with none of these bytes.
"""

from __future__ import annotations

import json
import zlib

from cache.encoding import codec
from cache.errors import CodecError
from worker.llm.answers import Answer, unreadable
from worker.llm.frames import unpack
from worker.llm.json_text import UnreadableJSON, decode

SHARED, OWN = b"s", b"o"
_COMPRESS_FROM, _COMPRESSED, _JSON, _FRAMES = 8192, b"z", b"j", b"f"
# A larger answer is not stored. Data that would compress by more than 32:1 is stored plain, so that
# the stored size bounds the reader's memory.
_MOST_ANSWER, _MOST_RATIO, _ANY_RATIO_BELOW = 67_108_864, 32, 1_048_576
_MOST_TEXT = _MOST_ANSWER + 1_048_576
_TOO_LARGE = Answer(
    kind="response_too_large", message=f"the encoded answer is over {_MOST_ANSWER} bytes"
)
_UNREADABLE = Answer(kind="unreadable", message="the stored answer cannot be decoded")


def encode_answer(answer: Answer) -> bytes:
    """The stored form of an answer."""
    return stored_form(answer)[0]


def stored_form(answer: Answer) -> tuple[bytes, bool]:
    """The stored form of an answer, and whether it is a success there."""
    row = [answer.body, answer.kind, answer.message]
    data = codec.encode_or_none(row)
    if data is None:
        try:
            data = _JSON + json.dumps(row, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            reason = f"the answer cannot be stored: {type(exc).__name__}"
            return codec.encode([None, "unstorable", reason]), False
    if len(data) > _MOST_ANSWER:
        return codec.encode([None, _TOO_LARGE.kind, _TOO_LARGE.message]), False
    packed = zlib.compress(data, 1) if len(data) >= _COMPRESS_FROM else b""
    if not packed or len(data) > _most_inflated(packed):
        return data, answer.ok
    return _COMPRESSED + packed, answer.ok


def long_head(answer: Answer) -> bytes:
    """What is stored before the frames of an answer's text."""
    head = codec.encode([answer.kind, answer.message, list(answer.path)])
    return OWN + _FRAMES + len(head).to_bytes(4, "big") + head


def _most_inflated(packed: bytes | memoryview) -> int:
    return min(_MOST_ANSWER, max(_ANY_RATIO_BELOW, _MOST_RATIO * len(packed)))


def decode_answer(stored: bytes) -> Answer:
    """Decode a stored answer; anything else becomes an answer of kind `unreadable`."""
    data = memoryview(stored)
    if stored[:1] in {SHARED, OWN}:
        data = data[1:]
    try:
        if data[:1] == _FRAMES:
            return _decode_long(data[1:])
        if data[:1] == _COMPRESSED:
            inflater, packed = zlib.decompressobj(), data[1:]
            data = memoryview(inflater.decompress(packed, _most_inflated(packed)))
            if not inflater.eof:
                return _UNREADABLE
        is_json = data[:1] == _JSON
        body, kind, message = json.loads(bytes(data[1:])) if is_json else codec.decode(data)
        return Answer(body, str(kind), str(message))
    except (zlib.error, CodecError, TypeError, ValueError, RecursionError):
        return _UNREADABLE


def _decode_long(data: memoryview) -> Answer:
    size = int.from_bytes(data[:4], "big")
    kind, message, path = codec.decode(data[4 : 4 + size])
    text = unpack(data[4 + size :], most=_MOST_TEXT)
    if kind:
        return Answer(text, str(kind), str(message))
    try:
        body = decode(text)
        for name in path:
            body = body[name]
    except (UnreadableJSON, LookupError, TypeError):
        return unreadable("the provider's answer is not JSON", text)
    return Answer(body)
