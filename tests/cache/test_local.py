"""The copies inside the process, and the breaker, without a server."""

from __future__ import annotations

from weakref import ref

import pytest

from cache.coherence.guarded import FIRST_WAIT_S, LONGEST_WAIT_S, wait_s
from cache.coherence.local import LocalLevel
from cache.encoding.header import StoredValue
from cache.options import LocalOptions
from cache.stats import Counters, PerAgent

pytestmark = pytest.mark.unit


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _level(max_bytes: int = 100_000, *, share: bool = False) -> tuple[LocalLevel, Time]:
    now = Time()
    options = LocalOptions(ttl_s=10, max_bytes=max_bytes, share_objects=share)
    return LocalLevel(options, Counters(), now=now), now


def _stored(data: bytes) -> StoredValue:
    return StoredValue(b"fill id.", payload=data)


def _keep(level: LocalLevel, key: str, data: bytes = b"data", left_s: float = 60) -> bool:
    fence = level.begin(key)
    return level.keep(key, "f", fence, stored=_stored(data), value=data, left_s=left_s)


def test_a_copy_ends_with_its_own_ttl_or_its_values() -> None:
    level, now = _level()
    _keep(level, "long", left_s=60)
    _keep(level, "short", left_s=3)
    now.now_s += 3
    assert level.get("short", "f") is None
    assert level.get("long", "f") is not None
    now.now_s += 7
    assert level.get("long", "f") is None
    assert (len(level), level.size_bytes) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    level, _ = _level(max_bytes=5000)
    for key in "abc":
        _keep(level, key, b"x" * 500)
    assert level.get("a", "f") is not None
    _keep(level, "d", b"x" * 500)
    assert level.get("b", "f") is None
    assert level.get("a", "f") is not None
    assert level.size_bytes <= 5000


def test_a_copy_larger_than_everything_is_not_kept() -> None:
    level, _ = _level(max_bytes=1000)
    assert not _keep(level, "a", b"x" * 2000)
    assert level.size_bytes == 0


def test_replacing_a_copy_counts_its_bytes_once() -> None:
    level, _ = _level()
    _keep(level, "a", b"x" * 500)
    size = level.size_bytes
    _keep(level, "a", b"y" * 500)
    assert level.size_bytes == size


def test_a_read_begun_before_an_invalidation_is_not_kept() -> None:
    level, _ = _level()
    fence = level.begin("a")
    level.invalidate("a")
    assert not level.keep("a", "f", fence, stored=_stored(b"old"), value=b"old", left_s=60)
    del fence
    assert _keep(level, "a")


def test_only_a_read_begun_after_an_invalidation_is_kept() -> None:
    level, _ = _level()
    old = level.begin("a")
    level.invalidate("a")
    new = level.begin("a")
    assert level.keep("a", "f", new, stored=_stored(b"new"), value=b"new", left_s=60)
    assert not level.keep("a", "f", old, stored=_stored(b"old"), value=b"old", left_s=60)
    fences = ref(old), ref(new)
    del old, new
    assert [fence() for fence in fences] == [None, None]  # nothing is left of the reads


def test_flushing_drops_copies_and_running_reads() -> None:
    level, _ = _level()
    _keep(level, "a")
    fence = level.begin("b")
    level.flush()
    assert level.get("a", "f") is None
    assert not level.keep("b", "f", fence, stored=_stored(b"x"), value=b"x", left_s=60)
    assert level.size_bytes == 0


def test_copies_are_not_used_while_the_backplane_is_behind() -> None:
    level, _ = _level()
    _keep(level, "a")
    level.usable = lambda: False
    assert level.get("a", "f") is None
    assert not _keep(level, "b")


def test_mutable_values_are_shared_only_on_request() -> None:
    value = {"k": 1}
    for share in (False, True):
        level, _ = _level(share=share)
        fence = level.begin("a")
        level.keep("a", "f", fence, stored=_stored(b"bytes"), value=value, left_s=60)
        copy = level.get("a", "f")
        assert copy is not None
        assert (copy.value is value) is share


def test_the_breaker_backs_off() -> None:
    waits = [wait_s(failures, 0.0) for failures in range(1, 2_000)]
    assert waits[0] == FIRST_WAIT_S
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S


def test_probes_of_many_processes_are_spread() -> None:
    assert wait_s(1, 0.999) < 0.51 * wait_s(1, 0.0) + 0.001


def test_counters_of_agents_are_bounded() -> None:
    counted = PerAgent()
    for number in range(10_500):
        counted.of(f"a{number}").hits += 1
    assert len(counted) == 10_000
    assert counted.of("a10499").hits == 1
    assert counted.of("a0").hits == 0
