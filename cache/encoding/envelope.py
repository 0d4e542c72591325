"""
The envelope of a cached value: a fixed header, the model's name, the value's own key, the payload.

    magic 2 | format version 1 | codec 1 | flags 1 | name length 1 | schema 2 |
    fill id 8 | mark of the era 8 | generation 8 | version 8 | etag 8 |
    fresh until, ms 8 | kept until, ms 8 | load time, us 4 | crc32 4 | payload length 4 |
    key length 2

lease.lua and fill.lua compare bytes 9-16, the fill id. A value of another
version or schema, or torn, is unreadable: a miss. So is a value that names
another key than the one it was asked for under: whatever mixes up replies or
copies keys, nobody is served another's value. Encryption authenticates the key. The length is exact and
the crc is of both ends of the payload: the server writes values whole, and a
crc of 38 KB would cost a third of a hit. Encryption authenticates every byte. pydantic
models are JSON and come back by `model_validate_json`; bytes are stored as they
are; everything else is msgpack. Never pickle, and no class is imported because
stored bytes name it: models are found among those this process has used.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from cache.encoding import codec, encryption
from cache.encoding.encryption import Keyring
from cache.errors import CodecError

MAGIC = b"\xc1L"  # 0xc1 begins no msgpack, JSON or UTF-8
FORMAT_VERSION = 2
_HEADER = struct.Struct(">2sBBBBH8s8s8sQ8sQQIIIH")
HEADER_BYTES = _HEADER.size
_RAW, _MSGPACK, _MODEL, _ABSENT = range(4)
_ZSTD, _ENCRYPTED = 1, 2
_MAX_US = 2**32 - 1
# Inflated size over the limit on stored size; beyond it a frame is taken for hostile.
_MAX_RATIO = 64
NO_GENERATION = bytes(8)
_END_BYTES = 512


def _ends_crc(body: bytes) -> int:
    return zlib.crc32(body[-_END_BYTES:], zlib.crc32(body[:_END_BYTES]))


class Unreadable(CodecError):
    """Stored bytes that are no value for this reader: a miss."""


class UnknownModel(Unreadable):
    """A model whose class this process has not used yet and the call did not name."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a value is stored with. Times are Unix milliseconds of the server's clock."""

    fill_id: bytes
    mark: bytes
    fresh_until_ms: int
    kept_until_ms: int
    generation: bytes = NO_GENERATION
    load_us: int = 0
    version: int = 0


class Header(NamedTuple):
    """What stands before the payload, in this order."""

    magic: bytes
    format_version: int
    codec: int
    flags: int
    name_length: int
    schema: int
    fill_id: bytes
    mark: bytes
    generation: bytes
    version: int
    etag: bytes
    fresh_until_ms: int
    kept_until_ms: int
    load_us: int
    crc: int
    length: int
    place_length: int


_make = tuple.__new__  # Header._make takes thrice as long


class StoredValue:
    """
    A stored value as it was read, still sealed: its header, and a copy of the rest.

    `head` is None when it is unreadable; `seen`, by which the scripts know it, is there always.
    """

    __slots__ = ("head", "name", "payload", "place", "seen")

    def __init__(
        self,
        seen: bytes,
        head: Header | None = None,
        name: bytes = b"",
        place: bytes = b"",
        payload: bytes = b"",
    ) -> None:
        self.seen = seen
        self.head = head
        self.name = name
        self.place = place
        self.payload = payload


class Models:
    """The model classes that this process has used, by their names."""

    def __init__(self) -> None:
        self._classes: dict[str, type[BaseModel]] = {}

    def add(self, model: type[BaseModel]) -> str:
        name = f"{model.__module__}.{model.__qualname__}"
        self._classes[name] = model
        return name

    def find(self, name: str) -> type[BaseModel] | None:
        return self._classes.get(name)


class Envelopes:
    """Seals and opens values. `place` is the key that a value is stored under, at most 64 KiB."""

    def __init__(
        self,
        *,
        schema_version: int = 1,
        compress_min_bytes: int = 0,
        max_value_bytes: int = 1024 * 1024,
        keyring: Keyring | None = None,
    ) -> None:
        if compress_min_bytes:
            encryption.require_zstd()
        self.models = Models()
        self._schema = schema_version
        self._compress_min = compress_min_bytes
        self._max_inflated = max_value_bytes * _MAX_RATIO
        self._keyring = keyring

    def seal(self, value: Any, stamp: Stamp, place: str) -> bytes:
        """
        Raises:
            NotEncodable: something inside has no safe encoding.
        """
        kind, name, payload = self._encode(value)
        where = place.encode()
        etag = blake2b(payload, digest_size=8).digest()
        flags, body = 0, payload
        if self._compress_min and len(body) >= self._compress_min:
            packed = encryption.compress(body, self._max_inflated)
            if packed is not None:
                flags, body = flags | _ZSTD, packed
        if self._keyring is not None:
            flags, body = flags | _ENCRYPTED, self._keyring.encrypt(body, where)
            etag = blake2b(body, digest_size=8).digest()  # of a short plaintext it would tell
        head = _HEADER.pack(
            MAGIC, FORMAT_VERSION, kind, flags, len(name), self._schema,
            stamp.fill_id, stamp.mark, stamp.generation, stamp.version, etag,
            stamp.fresh_until_ms, stamp.kept_until_ms, min(stamp.load_us, _MAX_US),
            _ends_crc(body), len(body), len(where),
        )  # fmt: skip
        return b"".join((head, name, where, body))

    def read(self, data: bytes | memoryview, start: int = 0, end: int | None = None) -> StoredValue:
        """The stored value that lies there; readable if this version and schema wrote it, whole."""
        end = len(data) if end is None else end
        at = start + HEADER_BYTES
        if at <= end:
            head: Header = _make(Header, _HEADER.unpack_from(data, start))
            where = at + head.name_length
            body = where + head.place_length
            if (
                head.magic == MAGIC
                and head.format_version == FORMAT_VERSION
                and head.schema == self._schema
                and head.flags <= _ZSTD | _ENCRYPTED
                and end - body == head.length
            ):
                name = bytes(data[at:where]) if head.name_length else b""
                return StoredValue(
                    head.fill_id, head, name, bytes(data[where:body]), bytes(data[body:end])
                )
        return StoredValue(bytes(data[start + 8 : min(end, start + 16)]))

    def open(self, stored: StoredValue, place: str, model: type[BaseModel] | None = None) -> Any:
        """
        The value of what has a header.

        Raises:
            UnknownModel: name the class with `model`, or use it once.
            Unreadable: of another key, altered, sealed with a key that is absent, or not valid
                for the model (any more).
        """
        head, body, where = stored.head, stored.payload, place.encode()
        if stored.place != where:
            raise Unreadable("the value of another key")
        if head is None or _ends_crc(body) != head.crc:
            raise Unreadable("altered")
        flags = head.flags
        try:
            if flags & _ENCRYPTED:
                if self._keyring is None:
                    raise Unreadable("encrypted, and no key is set")
                body = self._keyring.decrypt(body, where)
            elif self._keyring is not None:
                raise Unreadable("in clear, where only sealed values are trusted")
            if flags & _ZSTD:
                body = encryption.decompress(body, self._max_inflated)
            return self._decode(head.codec, stored.name, body, model)
        except Unreadable:
            raise
        except (CodecError, ValidationError, IndexError) as exc:
            raise Unreadable(type(exc).__name__) from None

    def _encode(self, value: Any) -> tuple[int, bytes, bytes]:
        if value is None:
            return _ABSENT, b"", b""
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _RAW, b"", bytes(value)
        if isinstance(value, BaseModel):
            name = self.models.add(type(value)).encode()[-255:]
            return _MODEL, name, value.model_dump_json(by_alias=True, round_trip=True).encode()
        return _MSGPACK, b"", codec.encode(value)

    def _decode(self, kind: int, name: bytes, body: bytes, model: type[BaseModel] | None) -> Any:
        if kind == _MODEL:
            cls = model or self.models.find(name.decode())
            if cls is None:
                raise UnknownModel(name.decode())
            return cls.model_validate_json(body)
        if kind == _RAW:
            return body
        if kind == _MSGPACK:
            value = codec.decode(body)
            return value if model is None else model.model_validate(value)
        if kind == _ABSENT:
            return None
        raise Unreadable("of an unknown codec")
