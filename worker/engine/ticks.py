"""
Computes when a cron job is due: the moments at which a local clock shows the given fields. Pure.

It steps in UTC, because a local clock jumps. The rules are those of Debian's cron. A
job of every hour or minute follows real time: it runs in both of two repeated hours,
and not in a skipped one. A job at fixed times runs once a day: in the first of two
repeated hours, and at the end of a skipped one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

_WEEKDAYS = ("mon", "tues", "wed", "thurs", "fri", "sat", "sun")
_RANGES = {
    "month": range(1, 13),
    "day": range(1, 32),
    "weekday": range(7),
    "hour": range(24),
    "minute": range(60),
    "second": range(60),
}
_DAY, _SECOND, _STEP = timedelta(days=1), timedelta(seconds=1), timedelta(microseconds=1)
# Weekdays and leap years repeat after 28 years, or 40 around the year 2100.
_HORIZON = timedelta(days=41 * 366)
# Two changes of a clock within this time are not detected.
_LOOK = timedelta(hours=6)


class NeverDue(ValueError):
    """No time matches these fields; the message names the field or the combination."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of each field, in order. `microsecond` is rounded down to a millisecond."""

    month: tuple[int, ...]
    day: tuple[int, ...]
    weekday: tuple[int, ...]  # from Monday, 0
    hour: tuple[int, ...]
    minute: tuple[int, ...]
    second: tuple[int, ...]
    microsecond: int

    @classmethod
    def of(cls, given: Any) -> Fields:
        """
        Read the fields of arq's `CronJob`: None (any), a value, or several.

        Raises:
            NeverDue: a value is out of its range, or no date has these fields.
        """
        named = {name: _values(name, getattr(given, name)) for name in _RANGES}
        microsecond = given.microsecond or 0
        if type(microsecond) is not int or not 0 <= microsecond < 1_000_000:
            raise NeverDue(f"microsecond={given.microsecond!r} is not from 0 to 999999")
        fields = cls(**named, microsecond=microsecond // 1000 * 1000)
        if fields.first(datetime(2000, 1, 1)) is None:  # noqa: DTZ001  (a local clock)
            raise NeverDue(f"no date has month={given.month!r} and day={given.day!r}")
        return fields

    @property
    def is_fixed(self) -> bool:
        """Whether the fields name times of the day, not intervals."""
        every_hour = len(self.hour) == len(_RANGES["hour"])
        every_minute = len(self.minute) == len(_RANGES["minute"])
        return not every_hour and not every_minute and len(self.second) == 1

    def first(self, local: datetime) -> datetime | None:
        """Return the first matching time of a clock without jumps at or after `local`."""
        if local.microsecond > self.microsecond:
            local += _SECOND
        day, until = local.date(), local.date() + _HORIZON
        clock = self._clock(local.hour, local.minute, local.second)
        if not self._has(day) or clock is None:
            day, clock = day + _DAY, self._clock(0, 0, 0)
        while day < until:
            if day.month not in self.month:
                day = (day.replace(day=1) + 31 * _DAY).replace(day=1)
            elif not self._has(day):
                day += _DAY
            else:
                assert clock is not None  # noqa: S101  (every day has a 0:00:00)
                return datetime.combine(day, clock)
        return None

    def _has(self, day: date) -> bool:
        has = day.month in self.month and day.day in self.day
        return has and day.weekday() in self.weekday

    def _clock(self, hour: int, minute: int, second: int) -> time | None:
        """Return the first matching time of a day at or after this one."""
        for h in self.hour:
            for m in self.minute if h >= hour else ():
                for s in self.second if (h, m) >= (hour, minute) else ():
                    if (h, m, s) >= (hour, minute, second):
                        return time(h, m, s, self.microsecond)
        return None


def next_tick(fields: Fields, zone: tzinfo, after: datetime) -> datetime:
    """Return the first tick after `after`; both are in UTC, to the millisecond."""
    moment = after + _STEP
    while True:
        offset = _offset(zone, moment)
        local = fields.first(_naive(moment) + offset)
        if local is None:
            raise NeverDue("no date has these fields")
        tick = (local - offset).replace(tzinfo=UTC)
        change = None if isinstance(zone, timezone) else _first_change(zone, moment, tick)
        if change is None:
            if not fields.is_fixed or not tick.astimezone(zone).fold:
                return tick
            moment = tick + _STEP  # it ran when the clock first showed this time
            continue
        if fields.is_fixed:
            skipped = fields.first(_naive(change) + offset)
            if skipped is not None and skipped < _naive(change) + _offset(zone, change):
                return change
        moment = change


def _values(name: str, given: Any) -> tuple[int, ...]:
    accepted = _RANGES[name]
    if given is None:
        return tuple(accepted)
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    numbers = [
        _WEEKDAYS.index(value.lower())
        if name == "weekday" and isinstance(value, str) and value.lower() in _WEEKDAYS
        else value
        for value in several
    ]
    if not numbers or any(type(n) is not int or n not in accepted for n in numbers):
        raise NeverDue(f"{name}={given!r} is not from {accepted[0]} to {accepted[-1]}")
    return tuple(sorted(set(numbers)))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _offset(zone: tzinfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _first_change(zone: tzinfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first moment in (start, end] at which the zone's clock jumps."""
    offset = _offset(zone, start)
    before = start
    while before < end:
        later = min(before + _LOOK, end)
        if _offset(zone, later) != offset:
            return _bisect(zone, offset, before.replace(microsecond=0), later)
        before = later
    return None


def _bisect(zone: tzinfo, offset: timedelta, before: datetime, later: datetime) -> datetime:
    # Clocks jump at whole seconds.
    low, high = 0, -((before - later) // _SECOND)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, before + middle * _SECOND) == offset:
            low = middle
        else:
            high = middle
    return before + high * _SECOND
