"""Every script says under which conditions the server may run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cache
import worker
from cache.connection.scripts import absent_beside, load

pytestmark = pytest.mark.unit

_HOMES = [Path(package.__file__ or "").parent for package in (cache, worker)]
SCRIPTS = [path for home in _HOMES for path in sorted(home.rglob("lua/[!_]*.lua"))]
WRITES = re.compile(
    r"redis\.p?call\('(SET|DEL|UNLINK|[HZSLR]?(ADD|SET|REM|PUSH|POP|DEL|TRIM)|P?EXPIRE|RENAME)'"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_declares_how_it_may_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    flags = re.fullmatch(r"#!lua(?: flags=(allow-oom|no-writes))?", first)
    assert flags, "without #!lua a script may start where it cannot end"
    contract = re.match(r"(?:--[^@].*\n)*", rest)[0]  # type: ignore[index]
    reasons = {None: "-- no allow-oom: ", "allow-oom": "-- allow-oom: ", "no-writes": ""}
    assert reasons[flags[1]] in contract
    assert "KEYS" in contract, "a script without a key runs on any node of a cluster"
    assert flags[1] != "no-writes" or not WRITES.search(text)


@pytest.mark.parametrize("name", ["enqueue", "enqueue_many", "stats"])
def test_a_function_that_nothing_calls_is_left_out(name: str) -> None:
    source = load("worker.queue", name).source
    code = re.sub(r"--.*", "", source)
    made = re.findall(r"local function (\w+)", code)
    assert made, "these scripts share steps"
    assert {each for each in made if len(re.findall(rf"\b{each}\b", code)) == 1} == set()
    # A step by itself keeps all of them.
    assert "local function fields_of" in load("worker.queue", "_types").source


@pytest.mark.parametrize(
    ("key", "absent"),
    [
        ("{arq}:job:1", "{arq}:absent"),
        ("lc:{a}:messages", "lc:{a}:absent"),
        ("lc:dependency:{block:1}", "lc:dependency:{block:1}:absent"),
        ("lc:backplane", "lc:absent:{lc:backplane}"),
        ("arq:queue", "arq:absent:{arq:queue}"),
        ("jobs", "jobsabsent:{jobs}"),
    ],
)
def test_the_absent_key_begins_as_its_neighbor_does(key: str, absent: str) -> None:
    assert absent_beside(key) == absent
