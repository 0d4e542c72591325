"""
Seals values into envelopes and opens them: header, model's name, the value's own key, payload.

A value of another format version or schema, or a torn one, is unreadable, which
is a miss. So is a value that names another key than it was read under: even if
replies are mixed up or keys are copied, nobody is served another's value.

The header holds the exact length, and a crc of both ends of the payload. The
server writes values whole, and a crc of all 38 KB would cost a third of a hit.
Encryption authenticates every byte, and the key.

pydantic models are stored as JSON and read by `model_validate_json`, also once
before they are stored, because JSON may change them. Bytes are stored as they
are, everything else as msgpack. Never pickle. No class is imported because
stored bytes name it: only models that this process has used are found.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from cache.encoding import codec, encryption
from cache.encoding.encryption import Keyring
from cache.encoding.header import (
    FORMAT_VERSION,
    HEADER_BYTES,
    LAYOUT,
    MAGIC,
    MAX_US,
    Header,
    Stamp,
    StoredValue,
)
from cache.encoding.models import is_model
from cache.errors import CodecError, NotEncodable

if TYPE_CHECKING:
    from pydantic import BaseModel

_RAW, _MSGPACK, _MODEL, _ABSENT = range(4)
_ZSTD, _ENCRYPTED = 1, 2
# Most inflated bytes for each byte of the stored-size limit. Beyond it, a frame is hostile.
_MAX_RATIO = 64
_END_BYTES = 512
_SHAREABLE = (bytes, str, int, float, bool, type(None))
_make = tuple.__new__  # Header._make takes three times as long


def _ends_crc(body: bytes) -> int:
    return zlib.crc32(body[-_END_BYTES:], zlib.crc32(body[:_END_BYTES]))


def _as_json(model: BaseModel) -> bytes:
    kind = type(model)
    try:
        data = model.model_dump_json(by_alias=True, round_trip=True).encode()
        found = kind.model_validate_json(data)
        same = found == model or _given(found) == _given(model)
    except Exception as exc:  # noqa: BLE001  (a model's own code raises anything)
        reason = type(exc).__name__
        raise NotEncodable(f"{kind.__name__} cannot be stored as JSON: {reason}") from None
    if not same:
        raise NotEncodable(f"{kind.__name__} would not come back as given{_changed(found, model)}")
    return data


def _given(model: BaseModel) -> dict[str, Any]:
    """What a model holds, without the fields that it excludes, and with those of subclasses."""
    return model.model_dump(round_trip=True, serialize_as_any=True)


def _changed(found: BaseModel, model: BaseModel) -> str:
    ours, theirs = _given(found), _given(model)
    names = [name for name in theirs if ours.get(name) != theirs[name]]
    return f": JSON changes its {', '.join(names)}; exclude that, or give it a type that JSON keeps"


class Unreadable(CodecError):
    """Stored bytes that this reader cannot use: a miss."""


class Unshared(CodecError):
    """A value without an encoding, which another caller has got."""


class UnknownModel(Unreadable):
    """A model whose class this process has not used yet and the call did not name."""


def _only_once(values: list[Any]) -> Any:
    if not values:
        raise Unshared("the value has no encoding")
    return values.pop()


class Models:
    """The model classes that this process has used, by name."""

    def __init__(self) -> None:
        self._classes: dict[str, type[BaseModel]] = {}

    def add(self, model: type[BaseModel]) -> str:
        name = f"{model.__module__}.{model.__qualname__}"
        self._classes[name] = model
        return name

    def find(self, name: str) -> type[BaseModel] | None:
        return self._classes.get(name)


class Envelopes:
    """Seals and opens values. `key` is where a value is stored, at most 64 KiB."""

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

    def seal(self, value: Any, stamp: Stamp, key: str) -> bytes:
        """
        The envelope of a value, bound to its key.

        Raises:
            NotEncodable: a part of the value would not come back as given.
        """
        kind, name, payload = self._encode(value)
        key_bytes = key.encode()
        etag = blake2b(payload, digest_size=8).digest()
        flags, body = 0, payload
        if self._compress_min and len(body) >= self._compress_min:
            packed = encryption.compress(body, self._max_inflated)
            if packed is not None:
                flags, body = flags | _ZSTD, packed
        if self._keyring is not None:
            flags, body = flags | _ENCRYPTED, self._keyring.encrypt(body, key_bytes)
            # A digest of the plaintext would reveal a short one.
            etag = blake2b(body, digest_size=8).digest()
        head = LAYOUT.pack(
            MAGIC, FORMAT_VERSION, kind, flags, len(name), self._schema,
            stamp.fill_id, stamp.run, stamp.version, etag,
            stamp.fresh_until_ms, stamp.kept_until_ms, min(stamp.load_us, MAX_US),
            _ends_crc(body), len(body), len(key_bytes),
        )  # fmt: skip
        return b"".join((head, name, key_bytes, body))

    def read(self, data: bytes | memoryview, start: int = 0, end: int | None = None) -> StoredValue:
        """The stored value in data[start:end]; readable if whole, and of this format and schema."""
        end = len(data) if end is None else end
        name_at = start + HEADER_BYTES
        if name_at <= end:
            head: Header = _make(Header, LAYOUT.unpack_from(data, start))
            key_at = name_at + head.name_length
            body_at = key_at + head.key_length
            if (
                head.magic == MAGIC
                and head.format_version == FORMAT_VERSION
                and head.schema == self._schema
                and head.flags <= _ZSTD | _ENCRYPTED
                and end - body_at == head.length
            ):
                name = bytes(data[name_at:key_at]) if head.name_length else b""
                return StoredValue(
                    head.fill_id, head, name, bytes(data[key_at:body_at]), bytes(data[body_at:end])
                )
        return StoredValue(bytes(data[start + 8 : min(end, start + 16)]))

    def open(self, stored: StoredValue, key: str, model: type[BaseModel] | None = None) -> Any:
        """
        Decode a stored value that was read under `key`.

        Raises:
            UnknownModel: name the class with `model`, or use it once in this process.
            Unreadable: it belongs to another key, was altered, is encrypted with a key that is
                not set, or is not valid for the model (any more).
        """
        head, body, key_bytes = stored.head, stored.payload, key.encode()
        if stored.key != key_bytes:
            raise Unreadable("the value belongs to another key")
        if head is None or _ends_crc(body) != head.crc:
            raise Unreadable("the value was altered")
        flags = head.flags
        try:
            if flags & _ENCRYPTED:
                if self._keyring is None:
                    raise Unreadable("encrypted, but LETTA_CACHE_ENCRYPTION_KEYS is not set")
                body = self._keyring.decrypt(body, key_bytes)
            elif self._keyring is not None:
                raise Unreadable("not encrypted, but LETTA_CACHE_ENCRYPTION_KEYS is set")
            if flags & _ZSTD:
                body = encryption.decompress(body, self._max_inflated)
            return self._decode(head.codec, stored.name, body, model)
        except Unreadable:
            raise
        except (ValueError, IndexError) as exc:  # pydantic's and ours are ValueErrors
            raise Unreadable(type(exc).__name__) from None

    def copies(self, value: Any) -> Callable[[], Any]:
        """
        Gives each caller a value of its own, as a reader of the stored value gets it.

        A value that has no encoding is given to the first caller only. Others get `Unshared`.
        """
        if type(value) in _SHAREABLE:
            return lambda: value
        model = type(value) if is_model(value) else None
        try:
            kind, name, payload = self._encode(value)
            ready = [self._decode(kind, name, payload, model)]
        except (ValueError, IndexError):  # pydantic's and ours are ValueErrors
            return partial(_only_once, [value])
        return lambda: ready.pop() if ready else self._decode(kind, name, payload, model)

    def _encode(self, value: Any) -> tuple[int, bytes, bytes]:
        if value is None:
            return _ABSENT, b"", b""
        if type(value) in (bytes, bytearray, memoryview):
            return _RAW, b"", bytes(value)
        if is_model(value):
            return _MODEL, self.models.add(type(value)).encode()[-255:], _as_json(value)
        return _MSGPACK, b"", codec.encode_exact(value)

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
        raise Unreadable("unknown codec")
