"""Tests that results are read whatever their form, and that a bad row hurts no other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.llm.answers import Answer, LongText, checked
from worker.llm.items import Items
from worker.llm.json_text import UnreadableJSON, decode
from worker.llm.outline import Outline
from worker.llm.providers.open_row import ResultRow
from worker.llm.providers.result_rows import RowReader, answers_of, rows_in
from worker.llm.providers.single import read_single
from worker.llm.result_lines import read_item
from worker.llm.stored_answers import decode_answer, encode_answer

pytestmark = pytest.mark.unit

BATCH = "b" * 24
PATH = ("response", "body")


def custom_id(number: int) -> str:
    return f"req_{number:032x}-{BATCH}"


def row(number: int, content: Any = "hi", **more: Any) -> bytes:
    body = {"choices": [{"message": {"content": content}}]}
    response = {"status_code": 200, "body": body}
    item = {"custom_id": custom_id(number), "response": response, "error": None, **more}
    return json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass")


def read(data: bytes, step: int = 65_536, most: int = 10**9) -> list[ResultRow]:
    reader = RowReader((), most=most)
    found = [r for at in range(0, len(data), step) for r in reader.feed(data[at : at + step])]
    return rows_of([*found, *reader.end()])


def rows_of(found: Iterable[ResultRow | None]) -> list[ResultRow]:
    """Without the pauses between the rows."""
    return [one for one in found if one is not None]


def pairs(one: ResultRow) -> Iterator[tuple[str, Answer]]:
    return answers_of(one, read_item, PATH)


def answers(rows: Iterable[ResultRow]) -> dict[str, str]:
    """Custom id -> the answer's kind, or its content."""
    found = {}
    for one in rows:
        for id_, answer in pairs(one):
            content = answer.body["choices"][0]["message"]["content"] if answer.ok else None
            found[id_] = answer.kind or str(content)
    return found


GOOD = {custom_id(1): "hi", custom_id(3): "hi"}
CR, BOM = b"\r", b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "data",
    [
        BOM + row(1) + b"\n" + row(3),
        b"\n\n" + row(1) + b"\r\n" + BOM + row(3) + b"\n\n \t\n",
        row(1) + CR + row(3) + CR,
        row(1) + row(3),
        b"\x1e" + row(1) + b"\n\x1e" + row(3) + b"\n",
        b"[\n" + row(1) + b",\n" + row(3) + b"\n]\n",
        b"[" + row(1) + b"," + row(3) + b"]",
        b"data: " + row(1) + b"\ndata: " + row(3) + b"\n",
        json.dumps(json.loads(row(1)), indent=2).encode() + b"\n" + row(3),
        row(1) + b"\0\0\n" + row(3) + b"\x1a",
        b"null\n" + row(1) + b'\n{"summary": 2}\n' + row(3),
        row(1) + b"\n" + row(3),
        row(1) + "\u2028\n\u00a0".encode() + row(3),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_what_stands_around_rows_costs_none(data: bytes, step: int) -> None:
    assert answers(read(data, step)) == GOOD


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"NaN", "nan"),
        (b"-Infinity", "-inf"),
        (b"1e999", "inf"),
        (b"9" * 5000, "inf"),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b'"a\tb\x01\r"', "a\tb\x01\r"),
        (b'"a\nb"', "a\nb"),
        (b'"\\ud800"', "\ud800"),
        (b'"caf\xe9"', "caf\ufffd"),
        (b'"\xed\xa0\xbd\xed\xb8\x80"', "\U0001f600"),
        (b'"\xed\xa0\x80"', "\ud800"),
        (b'"\xc0\x80"', "\ufffd\ufffd"),
        (b'"\xf0\x9f\x98"', "\ufffd"),
        (b'"\\u0000\x7f"', "\0\x7f"),
    ],
)
@pytest.mark.parametrize("step", [3, 65_536])
def test_an_answer_that_a_strict_decoder_refuses_is_read(
    content: bytes, found: str, step: int
) -> None:
    odd = row(2, "?").replace(b'"?"', content)
    data = b"\n".join([row(1), odd, row(3)])
    assert answers(read(data, step)) == GOOD | {custom_id(2): found}


@pytest.mark.parametrize(
    "broken",
    [
        row(2)[:-30],
        row(2).replace(b"200", b"nan(ind)"),
        row(2).replace(b"null", b"None"),
        row(2).replace(b":", b"="),
        row(2).replace(b'"hi"', b'"hi" "ho"'),
        row(2, []).replace(b"[]", b"[" * 5000 + b"]" * 5000),
        row(2)[5:],
        b"<html>" + custom_id(2).encode() + b"</html>",
        json.dumps({"id": custom_id(2), "response": None}).encode(),
    ],
)
@pytest.mark.parametrize("between", [b"\n", b"\r\n"])
def test_an_unreadable_row_is_malformed_alone(broken: bytes, between: bytes) -> None:
    data = between.join([row(1), broken, row(3)])
    rows = read(data)
    assert answers(rows) == GOOD | {custom_id(2): "malformed"}
    (bad,) = [r for r in rows if r.row is None]
    assert isinstance(bad.text, bytes)
    assert custom_id(2).encode() in bad.text


LONG = "long " * 60_000


@pytest.mark.parametrize(
    "broken",
    [
        row(2, LONG)[:-30],
        row(2, LONG).replace(b"null}", b"nul}"),
        row(2, LONG)[5:],
        b"<html>" + LONG.encode() + custom_id(2).encode() + LONG.encode(),
    ],
)
def test_a_long_unreadable_row_is_malformed_alone(broken: bytes) -> None:
    found = answers(read(b"\n".join([row(1), broken, row(3)])))
    found.pop("", None)  # what followed its object
    assert found == GOOD | {custom_id(2): "malformed"}


@pytest.mark.parametrize("between", [b"", b'{"summary": 1},'])
def test_rows_without_line_ends_are_all_read(between: bytes) -> None:
    rows = [row(number) for number in range(1900)]
    rows[1850] = row(1850, LONG)
    found = [id_ for one in read(between.join(rows)) for id_, _ in pairs(one)]
    assert found == [custom_id(number) for number in range(1900)]


@pytest.mark.parametrize("of", ["response", "result"])
def test_a_long_paid_line_of_another_form_keeps_its_text(of: str) -> None:
    body = json.dumps({"choices": [LONG]})
    line = json.dumps({"custom_id": custom_id(2), of: {"status_code": 200, "body": body}}).encode()
    ((_, found),) = [pair for one in read(line) for pair in pairs(one)]
    found = checked(found, "/v1/chat/completions")
    assert (found.kind, found.retryable) == ("malformed", False)
    assert found.text is not None
    assert b"".join(found.text.pieces) == line


def test_an_object_without_an_id_is_no_row_however_long() -> None:
    summary = json.dumps({"summary": LONG, "lines": [1]}, indent=1).encode()
    assert answers(read(row(1) + b"\n" + summary + b"\n" + row(3))) == GOOD


async def test_other_tasks_run_while_many_short_rows_are_read() -> None:
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def piece() -> AsyncIterator[bytes]:
        yield b"x\n" * 6000

    other = asyncio.create_task(beside())
    assert len([r async for r in rows_in(piece(), ())]) == 6000
    other.cancel()
    assert turns > 3


async def test_all_unreadable_rows_of_a_file_are_one_line_in_the_log() -> None:
    class Provider:
        async def results(self, _remote: Any) -> AsyncIterator[tuple[str, Answer]]:
            for one in read(b"<p>\n" * 300):
                for pair in pairs(one):
                    yield pair

    batch = SimpleNamespace(id=BATCH, fields={}, group=SimpleNamespace(endpoint=""))
    context = SimpleNamespace(batches=None, requests=None)
    items = Items(cast("Any", context), cast("Any", batch))
    with structlog.testing.capture_logs() as logs:
        assert await items.take_results(cast("Any", Provider()), cast("Any", None)) == 0
    assert [(log["event"], log["results"]) for log in logs] == [("batch.result_unreadable", 300)]


def test_an_unreadable_row_that_names_no_request_has_no_id() -> None:
    assert answers(read(row(1) + b"\n{garbage}\n" + row(3))) == GOOD | {"": "malformed"}


def test_rows_over_the_limit_fail_alone() -> None:
    data = b"\n".join([row(1), row(2, "x" * 3_000_000), row(3)])
    rows = read(data, most=2_000_000)
    assert answers(rows) == GOOD | {custom_id(2): "response_too_large"}
    late_id = json.dumps(dict(reversed(json.loads(row(2, "x" * 3_000_000)).items()))).encode()
    assert answers(read(late_id, most=2_000_000)) == {custom_id(2): "response_too_large"}


@pytest.mark.parametrize(
    "content",
    [
        "x" * 400_000,
        '\\"{[' * 100_000,
        [{"a": ["]", '"', "\\"], "n": -1.5}] * 20_000,
        "é\n" * 200_000,
    ],
)
@pytest.mark.parametrize("step", [50_001, 10**9])
def test_a_long_row_is_kept_as_it_came(content: Any, step: int) -> None:
    long = row(2, content)
    rows = read(b"\n".join([row(1), long, row(3)]), step)
    assert [r.row is not None for r in rows] == [True] * 3
    text = rows[1].text
    assert isinstance(text, LongText)
    assert b"".join(text.pieces) == long
    assert max(map(len, text.pieces)) <= 262_144


@pytest.mark.parametrize("content", ["ab c" * 2**20, [[0.25, {"k": "v"}]] * 200_000])
def test_no_piece_of_a_long_row_takes_long(content: Any) -> None:
    long = row(2, content)
    runs: list[list[float]] = []
    for _ in range(3):
        reader, times = RowReader(()), []
        for at in range(0, len(long), 65_536):
            start = time.thread_time()
            found = rows_of(reader.feed(long[at : at + 65_536]))
            times.append(time.thread_time() - start)
        assert [r.row is not None for r in found] == [True]
        runs.append(times)
    # The best of each piece: a collection of the whole test process's garbage takes as long.
    assert max(map(min, zip(*runs, strict=True))) < 0.02


# A value of 200 KB that takes long to decode, or that only the lenient decoder reads.
SLOW = {
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "many deep arrays": b"[" + b",".join([b"[" * 500 + b"]" * 500] * 200) + b"]",
    "wide arrays": b"[" + b"[]," * 66_000 + b"[]]",
    "wide objects": b"[" + b'{"a":1},' * 25_000 + b"{}]",
    "NaN among numbers": b"[" + b"1," * 100_000 + b"NaN]",
    "one lone surrogate": b"[" + b'"a",' * 50_000 + b'"\\ud800"]',
    "surrogates in UTF-8": b'"' + b"\xed\xa0\x80" * 66_000 + b'"',
    "a long number": b"[" + b"1," * 98_000 + b"1" * 5000 + b"]",
}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW)
async def test_a_row_that_is_slow_to_decode_is_kept_as_it_came(content: bytes) -> None:
    line = row(2, "?").replace(b'"?"', content)
    rows = read(b"\n".join([row(1), line, row(3)]))
    assert [answer.kind for one in rows for _, answer in pairs(one)] == ["", "", ""]
    text = rows[1].text
    assert isinstance(text, LongText)
    assert b"".join(text.pieces) == line
    body = line[line.index(b'{"choices"') : line.rindex(b', "error"') - 1]
    answer = await read_single(httpx.Response(200, content=b"\n" + body + b" "))
    assert answer.text is not None
    assert b"".join(answer.text.pieces) == body
    assert checked(answer, "/v1/chat/completions") == answer


@pytest.mark.parametrize(
    "content",
    [
        *SLOW.values(),
        b'"' * 200_000,
        b"{" * 200_000,
        b"1}}]}}} " + b"{} " * 60_000,
        b"1}}]}}} " + b'{"a":[1],"b":{}}' * 12_000,
    ],
    ids=[*SLOW, "quotes", "broken", "many objects", "many nested objects"],
)
def test_no_step_of_an_odd_row_takes_long(content: bytes) -> None:
    line = row(2, "?").replace(b'"?"', content)
    runs: list[list[float]] = []
    for _ in range(3):
        reader, times = RowReader(()), []
        for at in range(0, len(line) + 1, 16_384):
            steps, going = reader.feed((line + b"\n")[at : at + 16_384]), True
            while going:
                start = time.thread_time()
                going = next(steps, STOP) is not STOP
                times.append(time.thread_time() - start)
        runs.append(times)
    assert max(map(min, zip(*runs, strict=True))) < 0.015


STOP = object()

# Objects without a name, each of which was read by a turn of the interpreter's loop.
MANY = {
    "empty": b"{}" * 100_000,
    "no JSON": b"{x}" * 70_000,
    "with members": b'{"a":1,"b":"}"}, ' * 12_000,
    "nested": b'{"a":{},"b":[0]} ' * 12_000,
    "after brackets": b"]},{}" * 40_000,
    "after quotes": b'"{}' * 70_000,
}


@pytest.mark.parametrize("garbage", MANY.values(), ids=MANY)
def test_thousands_of_objects_without_a_name_are_read_together(garbage: bytes) -> None:
    data = row(1) + b"\n1}}]}}" + garbage + row(2) + b"\n" + row(3)
    assert answers(read(data)) == GOOD | {custom_id(2): "hi", "": "malformed"}
    times = []
    for _ in range(3):
        start = time.thread_time()
        read(data)
        times.append(time.thread_time() - start)
    assert min(times) < 0.25


@pytest.mark.parametrize("text", [b"garbage {}", b"\xff{}", b'lo"}}], {"in": 1}, {}', b"{} {x}"])
@pytest.mark.parametrize("before", [b"", b"x" * 300_000 + b'{"a":[[1]]}'])
def test_text_before_an_object_without_a_name_is_kept(text: bytes, before: bytes) -> None:
    rows = read(row(1) + b"\n" + before + text + b"\n" + row(3), 50_000)
    assert answers(rows) == GOOD | {"": "malformed"}
    kept = b"".join(one.text for one in rows if isinstance(one.text, bytes))
    assert text.rstrip(b"{}, ") in kept


def test_objects_that_are_json_but_no_rows_answer_nothing() -> None:
    objects = b'{"a":1}, {"b":[NaN,{}]} ,{}\n' + b'{"b":{}},' * 40_000 + b'{"c":[[]]}'
    assert answers(read(row(1) + b"\n" + objects + b"\n" + row(3))) == GOOD


@pytest.mark.parametrize("end", [b"", b"}", b"]", b'{"a": 1}'])
async def test_a_long_direct_reply_that_is_no_json_is_kept(end: bytes) -> None:
    content = b'{"choices": [{"message": {"content": "' + b"a" * 300_000 + end
    answer = await read_single(httpx.Response(200, content=content))
    assert answer.kind == "malformed"
    assert answer.text is not None
    assert b"".join(answer.text.pieces) == content


@pytest.mark.parametrize("value", [2**70, "\ud800"])
def test_an_answer_that_msgpack_lacks_is_stored_without_a_search(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The search for the part that cannot be encoded takes ten times as long as encoding.
    monkeypatch.setattr("cache.encoding.codec.refusal", None)
    assert decode_answer(encode_answer(Answer(body=[value]))).body == [value]


def test_secrets_in_a_long_row_are_removed_wherever_they_stand() -> None:
    secret = b"sk-very-secret"
    reader = RowReader((secret,))
    long = row(2, "".join("." * n + secret.decode() for n in range(0, 2000, 3)))
    rows = rows_of([*reader.feed(long), *reader.end()])
    text = rows[0].text
    assert isinstance(text, LongText)
    assert b"".join(text.pieces) == long.replace(secret, b"***")


TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**30), 10**30) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)
BROKEN = st.sampled_from([b"{", b"}", b'"', b"\\", b"{x", b"\xff\xfe", b"[1", b'{"a": "', b"nul"])


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.tuples(VALUES, st.booleans(), st.booleans()), BROKEN), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n" + BOM]),
    st.integers(1, 200),
)
def test_any_mixture_of_rows_gives_every_good_row(
    parts: list[Any], between: bytes, step: int
) -> None:
    lines, wanted = [], {}
    for number, part in enumerate(parts):
        if isinstance(part, bytes):
            lines.append(part)
            continue
        content, ascii_only, spaced = part
        item = json.loads(row(number))
        item["response"]["body"]["choices"][0]["message"]["content"] = content
        separators = None if spaced else (",", ":")
        text = json.dumps(item, ensure_ascii=ascii_only, separators=separators)
        lines.append(text.encode("utf-8", "surrogatepass"))
        wanted[custom_id(number)] = text
    rows = read(between.join(lines), step)
    found = {str(r.row["custom_id"]): r.row for r in rows if r.row and "custom_id" in r.row}
    assert repr(found) == repr(
        {id_: decode(text.encode("utf-8", "surrogatepass")) for id_, text in wanted.items()}
    )


@settings(max_examples=60)
@given(st.dictionaries(TEXT, VALUES, max_size=6), st.integers(1, 9), st.booleans())
def test_the_outline_ends_where_the_object_ends(value: Any, step: int, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    outline, used = Outline(), 0
    for at in range(0, len(data), step):
        assert not outline.is_done
        used += outline.feed(data[at : at + step] + (b'{"' if at + step >= len(data) else b""))
    assert outline.is_done
    assert used == len(data)
    assert repr(decode(bytes(outline.text))) == repr(
        outlined(json.loads(data.decode("utf-8", "surrogatepass")))
    )


def outlined(value: Any) -> Any:
    if isinstance(value, list):
        return [0]
    if isinstance(value, dict):
        return {key: outlined(inner) for key, inner in value.items()}
    return value


@pytest.mark.parametrize("data", [b"", b"  ", b"{", b"1 2", b"{} {}", b"'x'", b"\xff", b"[1,]"])
def test_what_is_no_single_json_value_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableJSON):
        decode(data)
