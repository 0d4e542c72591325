"""When cron jobs are due: in any zone, over both changes of its clock, with any fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from arq.cron import cron
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine import Worker
from worker.engine.cron import ticks_of
from worker.engine.ticks import Fields, NeverDue, next_tick
from worker.errors import BadCron

pytestmark = pytest.mark.unit

# `make soak` looks at more.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NEW_YORK = ZoneInfo("America/New_York")
# Half an hour, midnight, a whole day, two hours, winter as the change: clocks that jump oddly.
ODD = [
    *("Australia/Lord_Howe", "America/Havana", "Pacific/Apia", "Antarctica/Troll"),
    *("Europe/Dublin", "Africa/Casablanca", "America/Sao_Paulo", "America/St_Johns"),
]


async def job(ctx: dict[str, Any]) -> None: ...


def fields(**given_fields: Any) -> Fields:
    return Fields.of(cron(job, **{"microsecond": 0, **given_fields}))


def ticks(of: Fields, zone: Any, after: datetime) -> Iterator[datetime]:
    while True:
        after = next_tick(of, zone, after)
        yield after


def shown(zone: Any, moments: list[datetime]) -> list[str]:
    return [f"{moment.astimezone(zone):%d %H:%M:%S}" for moment in moments]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


# -- both changes of the clock, by example ------------------------------------------------


def test_a_secondly_job_runs_through_a_repeated_hour() -> None:
    of = fields(second=set(range(60)))
    after = utc(2026, 11, 1, 6, 30)  # 1:30 for the second time
    found = list(islice(ticks(of, NEW_YORK, after), 3600))
    assert found == [after + timedelta(seconds=n + 1) for n in range(3600)]


def test_an_hourly_job_runs_in_both_of_two_repeated_hours() -> None:
    found = list(islice(ticks(fields(minute=15), NEW_YORK, utc(2026, 11, 1, 4)), 4))
    assert shown(NEW_YORK, found) == ["01 00:15:00", "01 01:15:00", "01 01:15:00", "01 02:15:00"]
    assert found[2] - found[1] == timedelta(hours=1)


def test_a_daily_job_runs_in_the_first_of_two_repeated_hours() -> None:
    daily = fields(hour=1, minute=30)
    found = list(islice(ticks(daily, NEW_YORK, utc(2026, 10, 31, 12)), 2))
    assert found == [utc(2026, 11, 1, 5, 30), utc(2026, 11, 2, 6, 30)]
    # Also for a worker that starts between the two.
    assert next_tick(daily, NEW_YORK, utc(2026, 11, 1, 6, 10)) == utc(2026, 11, 2, 6, 30)


def test_a_daily_job_in_a_skipped_hour_runs_at_its_end() -> None:
    daily = fields(hour=2, minute=30)
    found = list(islice(ticks(daily, NEW_YORK, utc(2026, 3, 7)), 3))
    assert shown(NEW_YORK, found) == ["07 02:30:00", "08 03:00:00", "09 02:30:00"]


def test_an_hourly_job_does_not_run_in_a_skipped_hour() -> None:
    found = list(islice(ticks(fields(minute=0), NEW_YORK, utc(2026, 3, 8, 5, 30)), 3))
    assert shown(NEW_YORK, found) == ["08 01:00:00", "08 03:00:00", "08 04:00:00"]


def test_a_leap_day_is_found_over_a_century() -> None:
    leap = fields(month=2, day=29, hour=0, minute=0)
    assert next_tick(leap, UTC, utc(2096, 3, 1)) == utc(2104, 2, 29)


def test_ticks_have_whole_milliseconds() -> None:
    found = next_tick(fields(second=None, microsecond=123_456), UTC, utc(2026, 1, 1))
    assert found == utc(2026, 1, 1, 0, 0, 0, 123_000)
    assert next_tick(fields(second=None, microsecond=123_456), UTC, found) > found


# -- any zone, any fields, against looking at every minute ----------------------------------


@cache
def changes(name: str, year: int) -> tuple[datetime, ...]:
    """The hours of a year in which the zone's clock jumps."""
    zone = ZoneInfo(name)
    hours = [utc(year, 1, 1) + timedelta(hours=n) for n in range(8760)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return tuple(hours[n] for n in range(8759) if offsets[n] != offsets[n + 1])


def several(values: range) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values) | st.sets(st.sampled_from(values), min_size=1)


def looked_up(of: Fields, zone: ZoneInfo, start: datetime, minutes: int) -> list[datetime]:
    """The ticks within the minutes after `start`, found by looking at the clock at each."""
    clock = []
    for n in range(minutes):
        moment = start + n * MINUTE
        clock.append((moment, moment.astimezone(zone).replace(tzinfo=None)))
    found = set()
    for moment, local in [] if of.is_fixed else clock:
        at_time = local.hour in of.hour and local.minute in of.minute
        if at_time and _has(of, local):
            found |= {moment + timedelta(seconds=s) for s in of.second}
    if of.is_fixed:
        (second,) = of.second
        first, last = clock[0][1], max(local for _, local in clock)
        for n in range((last.date() - first.date()).days + 1):
            day = first.date() + n * DAY
            found |= set(_fixed(of, day, clock, second))
    return sorted(found)


def _has(of: Fields, day: date) -> bool:
    return day.month in of.month and day.day in of.day and day.weekday() in of.weekday


def _fixed(of: Fields, day: date, clock: Any, second: int) -> Iterator[datetime]:
    for hour in of.hour if _has(of, day) else ():
        for minute in of.minute:
            wanted = datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001
            for moment, local in clock:
                if local >= wanted:
                    is_shown = local == wanted
                    yield moment + timedelta(seconds=second if is_shown else 0)
                    break


def some(values: range) -> st.SearchStrategy[set[int]]:
    return st.sets(st.sampled_from(values), min_size=1, max_size=4)


# Hours count from the one in which the clock jumps.
TIMES = st.fixed_dictionaries(
    {"hour": some(range(-2, 3)), "minute": some(range(60)), "second": st.sampled_from([0, 30])}
)
INTERVALS = st.fixed_dictionaries(
    {
        "hour": st.none() | some(range(-2, 3)),
        "minute": st.none() | some(range(60)),
        "second": st.just(0) | some(range(60)),
    }
)
DATES = st.fixed_dictionaries(
    {"month": several(range(1, 13)), "day": several(range(1, 29)), "weekday": several(range(7))}
)


@settings(
    max_examples=EXAMPLES,
)
@given(
    name=st.sampled_from(ODD) | st.sampled_from(sorted(available_timezones())),
    when=st.tuples(st.integers(1990, 2037), st.integers(0, 3), st.integers(-18 * 3600, 3 * 3600)),
    dates=st.sampled_from([True, False, False, False]).flatmap(
        lambda given_dates: DATES if given_dates else st.just({})
    ),
    times=TIMES | INTERVALS,
)
def test_ticks_are_those_that_the_zones_clock_shows(
    name: str, when: tuple[int, int, int], dates: dict[str, Any], times: dict[str, Any]
) -> None:
    year, at, start_s = when
    zone, jumps = ZoneInfo(name), changes(name, year)
    change = jumps[at % len(jumps)] if jumps else utc(year, 6, 1)
    base = change.astimezone(zone).hour
    hours = times["hour"] and {(base + n) % 24 for n in times["hour"]}
    of = fields(**{**dates, **times, "hour": hours})
    after = change + timedelta(seconds=start_s)
    # So long before that each local day is seen from its beginning.
    looked = looked_up(of, zone, change - 2 * DAY, 4 * 24 * 60)
    expected = [tick for tick in looked if after < tick < change + 18 * HOUR][:100]
    assert list(islice(ticks(of, zone, after), len(expected))) == expected


# -- refused at registration ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"hour": 24}, "hour"),
        ({"minute": {0, 61}}, "minute"),
        ({"second": -1}, "second"),
        ({"day": 0}, "day"),
        ({"month": 13}, "month"),
        ({"month": 2, "day": 30}, "day"),
        ({"month": {4, 6}, "day": 31}, "day"),
        ({"weekday": "someday"}, "weekday"),
        ({"weekday": 7}, "weekday"),
        ({"hour": set()}, "hour"),
        ({"hour": "3"}, "hour"),
        ({"minute": 1.5}, "minute"),
        ({"microsecond": 1_000_000}, "microsecond"),
    ],
    ids=str,
)
async def test_a_cron_job_that_can_never_run_is_refused(wrong: dict[str, Any], named: str) -> None:
    # Outside of an event loop, arq's constructor would make one and leave it open.
    with pytest.raises(BadCron, match=rf"'nightly' can never run: .*{named}"):
        Worker([], cron_jobs=[cron(job, name="nightly", **wrong)])


def test_arqs_names_of_weekdays_are_read() -> None:
    assert fields(weekday="Sun").weekday == (6,)
    assert fields(weekday={"mon", 2}).weekday == (0, 2)


def test_a_date_that_never_comes_is_never_due() -> None:
    with pytest.raises(NeverDue):
        fields(month=2, day=30)


def test_ticks_of_an_own_class_must_go_forward() -> None:
    class Stuck(type(cron(job))):  # type: ignore[misc]
        def calculate_next(self, prev_run: datetime) -> None:
            self.next_run = prev_run

    stuck = Stuck(**vars(cron(job)))
    with pytest.raises(ValueError, match="not after"):
        ticks_of(stuck, UTC)(utc(2026, 1, 1))
