"""Envelopes: foreign, torn or misplaced bytes are unreadable, and never another error."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from cache.encoding import encryption
from cache.encoding.encryption import Keyring, decompress, parse_keys
from cache.encoding.envelope import Envelopes, UnknownModel, Unreadable
from cache.encoding.header import HEADER_BYTES, Stamp
from cache.errors import CodecError, MissingExtra, NotEncodable
from cache.options import CacheOptions
from cache.records import Records

pytestmark = pytest.mark.unit

STAMP = Stamp(b"fill-id!", b"run-id!!", 1000, 2000, load_us=7)
PLACE = "lc:{a1}:s:"


class Aliased(BaseModel):
    name: str = Field(alias="agentName")


def _keys(*names: str) -> str:
    return " ".join(f"{n}:{base64.b64encode(n[0].encode() * 32).decode()}" for n in names)


def _open(envelopes: Envelopes, data: bytes, model: type[BaseModel] | None = None) -> Any:
    return envelopes.open(envelopes.read(data), PLACE, model)


def _round(envelopes: Envelopes, value: Any) -> Any:
    return _open(envelopes, envelopes.seal(value, STAMP, PLACE))


@pytest.mark.parametrize("value", [b"", b"\x00", {"a": None}, [], "ü", 1.5, None, {1: b"x"}])
def test_values_come_back(value: Any) -> None:
    assert _round(Envelopes(), value) == value


def test_the_stamp_comes_back_with_an_etag_of_the_content() -> None:
    envelopes = Envelopes()
    first = envelopes.read(envelopes.seal({"a": 1}, STAMP, PLACE)).head
    again = envelopes.read(envelopes.seal({"a": 1}, STAMP, PLACE)).head
    other = envelopes.read(envelopes.seal({"a": 2}, STAMP, PLACE)).head
    assert first is not None
    assert (first.fill_id, first.run, first.load_us) == (b"fill-id!", b"run-id!!", 7)
    assert (first.fresh_until_ms, first.kept_until_ms) == (1000, 2000)
    assert again is not None
    assert other is not None
    assert first.etag == again.etag != other.etag


def test_the_scripts_find_the_fill_id_in_bytes_9_to_16() -> None:
    assert Envelopes().seal(1, STAMP, PLACE)[8:16] == b"fill-id!"


def test_a_model_with_aliases_comes_back() -> None:
    assert _round(Envelopes(), Aliased(agentName="Ada")) == Aliased(agentName="Ada")


def test_a_model_class_is_never_imported_because_bytes_name_it() -> None:
    data = Envelopes().seal(Aliased(agentName="Ada"), STAMP, PLACE)
    with pytest.raises(UnknownModel):
        _open(Envelopes(), data)
    assert _open(Envelopes(), data, Aliased).name == "Ada"


@pytest.mark.parametrize("value", [object(), {"f": lambda: 1}, Ellipsis])
def test_what_has_no_safe_encoding_is_refused(value: Any) -> None:
    with pytest.raises(NotEncodable):
        Envelopes().seal(value, STAMP, PLACE)


@pytest.mark.parametrize("cut", [0, 1, 7, 16, HEADER_BYTES - 1, HEADER_BYTES, -1])
def test_a_value_cut_short_is_unreadable(cut: int) -> None:
    data = Envelopes().seal({"a": [1] * 50}, STAMP, PLACE)
    assert Envelopes().read(data[:cut]).head is None


def test_a_value_with_trailing_bytes_is_unreadable() -> None:
    data = Envelopes().seal({"a": 1}, STAMP, PLACE)
    assert Envelopes().read(data + b"x").head is None


@pytest.mark.parametrize("value", [b"raw " * 50, {"a": [1] * 50}, Aliased(agentName="Ada" * 50)])
def test_an_altered_value_is_unreadable(value: Any) -> None:
    envelopes = Envelopes()
    data = bytearray(envelopes.seal(value, STAMP, PLACE))
    data[-20] ^= 1
    with pytest.raises(Unreadable):
        _open(envelopes, bytes(data))


def test_every_altered_byte_of_a_header_is_harmless() -> None:
    envelopes = Envelopes()
    data = envelopes.seal({"a": 1}, STAMP, PLACE)
    for place in range(HEADER_BYTES):
        altered = bytearray(data)
        altered[place] ^= 0xFF
        stamp = envelopes.read(bytes(altered)).head
        if stamp is not None:
            with contextlib.suppress(Unreadable):
                _open(envelopes, bytes(altered))


@pytest.mark.parametrize(
    "data", [b"", b"x" * 200, pickle.dumps({"a": 1}), b"\x80\x04", os.urandom(500)]
)
def test_foreign_bytes_are_unreadable(data: bytes) -> None:
    assert Envelopes().read(data).head is None


def test_another_schema_version_is_unreadable() -> None:
    data = Envelopes(schema_version=1).seal(1, STAMP, PLACE)
    assert Envelopes(schema_version=2).read(data).head is None


def test_values_over_a_size_are_compressed() -> None:
    envelopes = Envelopes(compress_min_bytes=1000)
    small, large = b"x" * 100, b"x" * 10_000
    assert len(envelopes.seal(small, STAMP, PLACE)) > 100
    assert len(envelopes.seal(large, STAMP, PLACE)) < 500
    assert _round(envelopes, large) == large
    # A reader needs no compression setting.
    assert _open(Envelopes(), envelopes.seal(large, STAMP, PLACE)) == large


def test_a_hostile_frame_is_not_inflated() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(CodecError):
        decompress(bomb, 1_000_000)


def test_no_two_threads_share_a_compressor() -> None:
    """Two that do crash the process."""
    with ThreadPoolExecutor(1) as pool:
        of_another = pool.submit(encryption.zstd).result()
    for mine, other in zip(encryption.zstd(), of_another, strict=True):
        assert mine is not other
    assert encryption.zstd() is encryption.zstd()


def test_without_zstandard_compressed_values_are_unreadable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Envelopes(compress_min_bytes=10).seal(b"x" * 100, STAMP, PLACE)
    encryption.zstd_of.cache_clear()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(Unreadable):
        _open(Envelopes(), data)
    with pytest.raises(MissingExtra, match=r"letta-redis\[zstd\]"):
        Envelopes(compress_min_bytes=10)


def test_without_cryptography_a_keyring_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r"letta-redis\[encryption\]"):
        Keyring.parse(_keys("a"))


def test_encrypted_values_contain_no_plaintext() -> None:
    envelopes = Envelopes(keyring=Keyring.parse(_keys("a")), compress_min_bytes=64)
    for value in (b"PLAINSECRET", {"k": "PLAINSECRET" * 20}, Aliased(agentName="PLAINSECRET")):
        data = envelopes.seal(value, STAMP, PLACE)
        assert b"PLAINSECRET" not in data
        assert zlib.crc32(b"PLAINSECRET").to_bytes(4) not in data
        assert _open(envelopes, data) == value


def test_keys_rotate() -> None:
    old = Envelopes(keyring=Keyring.parse(_keys("old")))
    both = Envelopes(keyring=Keyring.parse(_keys("new", "old")))
    new = Envelopes(keyring=Keyring.parse(_keys("new")))
    assert _open(both, old.seal(1, STAMP, PLACE)) == 1
    assert _open(new, both.seal(1, STAMP, PLACE)) == 1
    with pytest.raises(Unreadable):
        _open(new, old.seal(1, STAMP, PLACE))


@pytest.mark.parametrize("keyring", [None, Keyring.parse(_keys("a"))], ids=["clear", "sealed"])
@pytest.mark.parametrize("value", [1, b"raw", None, Aliased(agentName="Ada")])
def test_a_value_does_not_open_under_another_key(keyring: Keyring | None, value: Any) -> None:
    envelopes = Envelopes(keyring=keyring)
    stored = envelopes.read(envelopes.seal(value, STAMP, PLACE))
    for other in ("lc:{a2}:s:", "", PLACE + "x", PLACE[:-1]):
        with pytest.raises(Unreadable):
            envelopes.open(stored, other)
    assert envelopes.open(stored, PLACE) == value


def test_an_encrypted_value_with_a_rewritten_key_does_not_open() -> None:
    envelopes = Envelopes(keyring=Keyring.parse(_keys("a")))
    data = envelopes.seal(1, STAMP, PLACE).replace(PLACE.encode(), b"lc:{a2}:s:")
    with pytest.raises(Unreadable):
        envelopes.open(envelopes.read(data), "lc:{a2}:s:")


def test_with_keys_only_encrypted_values_are_read() -> None:
    clear, sealed = Envelopes(), Envelopes(keyring=Keyring.parse(_keys("a")))
    with pytest.raises(Unreadable):
        _open(sealed, clear.seal(1, STAMP, PLACE))
    with pytest.raises(Unreadable):
        _open(clear, sealed.seal(1, STAMP, PLACE))


@pytest.mark.parametrize(
    "text", ["x", "a:zz", "a:" + base64.b64encode(b"k" * 31).decode(), _keys("a", "a"), ":x"]
)
def test_a_wrong_key_is_named_without_its_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="id:base64") as error:
        parse_keys(text)
    assert text not in str(error.value)


@pytest.mark.parametrize("how", ["clear", "zstd", "sealed", "both"])
def test_messages_come_back(how: str) -> None:
    options = CacheOptions(
        compress_min_bytes=64 if how in {"zstd", "both"} else 0,
        keyring=Keyring.parse(_keys("a")) if how in {"sealed", "both"} else None,
    )
    records = Records(options)
    message = {"id": "m1", "sequence_id": 1, "text": "PLAINSECRET" * 20}
    record = records.seal(message, PLACE.encode())
    assert (b"PLAINSECRETPLAINSECRET" in record) is (how == "clear")
    assert records.open_all([record], PLACE.encode()) == [message]
    for broken in (b"", b"\xc1", record[:-1], b"\xc1\x07" + record[2:], b"x" + record[1:]):
        with pytest.raises(Unreadable):
            records.open_all([broken], PLACE.encode())


class Plain(BaseModel):
    name: str = "Ada"


class Derived(Plain):
    more: int = 1


class Odd(BaseModel):
    secret: SecretStr | None = None
    anything: Any = None
    number: float | None = None
    plain: Plain = Plain()


CHANGED = [
    ("secret", Odd(secret=SecretStr("hunter2"))),
    ("anything", Odd(anything=UUID(int=1))),
    ("anything", Odd(anything=[{1}])),
    ("number", Odd(number=float("inf"))),
    ("plain", Odd(plain=Derived())),
]


@pytest.mark.parametrize(("field", "model"), CHANGED)
def test_a_model_that_json_would_change_is_refused(field: str, model: Odd) -> None:
    with pytest.raises(NotEncodable, match=f"its {field};") as caught:
        Envelopes().seal(model, STAMP, PLACE)
    assert "hunter2" not in str(caught.value)


def test_what_a_model_excludes_does_not_refuse_it() -> None:
    class Partly(BaseModel):
        name: str
        lock: Any = Field(None, exclude=True)
        _private: object = PrivateAttr(default_factory=object)

    model = Partly(name="Ada", lock=object())
    assert _round(Envelopes(), model).name == "Ada"
    assert _round(Envelopes(), Aliased(agentName="Ada")) == Aliased(agentName="Ada")
