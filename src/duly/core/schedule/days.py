"""Sets of dates, walked month by month with bit masks. Cron and RRULE differ only in how they say which dates.

A date is a count of days since 1970-01-01. A month's dates are one integer: bit d is set when day d belongs.
Whether a date belongs depends on its month, day and weekday, on the length of its month and year and on the week
numbers around it: all the same for every year of the same *shape* (weekday of 1 January, leap, leap the year
before). So a set is asked about each date of a shape once, and walking forty years costs microseconds.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator
from datetime import date
from typing import NamedTuple

from duly.core.errors import InvalidInput

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
# 1970-01-01T00:00Z is still 1969 west of Greenwich. A year is left at the end, so that no week or zone overflows.
FIRST_YEAR, LAST_YEAR = 1969, 9998

# A set without a date for this many months is over. The Gregorian calendar repeats after 400 years, so only sets
# with an interval (every 7th February) could be silent for longer.
SILENCE = 400 * 12

WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days in January, February, …

_MAX_DAYS_OFF = 1000

# 400 years are a whole number of weeks: the shape of a year depends on year % 400 alone.
_SHAPES = tuple(
    date(year, 1, 1).weekday() * 4 + calendar.isleap(year) * 2 + calendar.isleap(year - 1) for year in range(2000, 2400)
)


class Stride(NamedTuple):
    """Every `every`-th `unit`, counted from the one that holds the date `origin` (days since 1970).

    Weeks begin on weekday `first` (0 = Monday).
    """

    unit: str
    every: int
    origin: int
    first: int = 0

    def months(self) -> tuple[int, int]:
        """(every, origin) in months since year 0, (1, 0) for units within a month."""
        start = date.fromordinal(self.origin + EPOCH_ORDINAL)
        if self.unit == "month":
            return self.every, start.year * 12 + start.month - 1
        return 1, 0

    def mask(self, first_day: int) -> int:
        """The days of the month that begins on `first_day` which the stride touches; years are not its matter."""
        if self.unit == "day":
            offset = (self.origin - first_day) % self.every
            return sum(1 << day for day in range(1 + offset, 32, self.every))
        if self.unit == "week":
            monday_based = self.origin + EPOCH_ORDINAL - 1
            week = (monday_based - self.first) // 7
            touched = 0
            for day in range(1, 32):
                this = (first_day + day - 1 + EPOCH_ORDINAL - 1 - self.first) // 7
                if (this - week) % self.every == 0:
                    touched |= 1 << day
            return touched
        return -1


class DaysOff:
    """Dates on which nothing happens: single dates, yearly dates and weekdays."""

    __slots__ = ("dates", "single", "weekdays", "yearly")

    def __init__(self, dates: frozenset[date], yearly: frozenset[tuple[int, int]], weekdays: frozenset[int]) -> None:
        self.dates = dates
        self.yearly = yearly
        self.weekdays = weekdays
        self.single: dict[tuple[int, int], int] = {}
        for item in dates:
            key = (item.year, item.month)
            self.single[key] = self.single.get(key, 0) | 1 << item.day

    def covers(self, day: int) -> bool:
        """Whether this date is off."""
        item = date.fromordinal(day + EPOCH_ORDINAL)
        return self.returns(item) or item in self.dates

    def returns(self, item: date) -> bool:
        """Whether this date is off by its weekday or every year."""
        return item.weekday() in self.weekdays or (item.month, item.day) in self.yearly


class Days:
    """The dates for which `belongs` is true, in `months` (1 to 12), by `stride`, without the `off` ones.

    `belongs` may depend on the shape of the year only (see the module).
    """

    __slots__ = ("_belongs", "_every", "_masks", "_months", "_off", "_origin", "_stride", "_year")

    def __init__(
        self,
        belongs: Callable[[date], bool],
        months: frozenset[int] = frozenset(range(1, 13)),
        stride: Stride | None = None,
        off: DaysOff | None = None,
    ) -> None:
        self._belongs = belongs
        self._months = months
        self._off = off
        self._masks: dict[int, int] = {}
        self._stride = stride if stride is not None and stride.unit in ("day", "week") else None
        self._every, self._origin = stride.months() if stride is not None else (1, 0)
        self._year = (
            (stride.every, date.fromordinal(stride.origin + EPOCH_ORDINAL).year)
            if stride is not None and stride.unit == "year" and stride.every > 1
            else None
        )

    def on_or_after(self, day: int, last: int = 1 << 62) -> int | None:
        """The first date from `day` to `last`; None when there is none in 400 years, or before the year 9999.

        The walk looks a little past `last`: the caller compares.
        """
        if day > _LAST_DAY:
            return None
        at = date.fromordinal(max(day, _FIRST_DAY) + EPOCH_ORDINAL)
        month = at.year * 12 + at.month - 1
        keep = -1 << at.day
        for candidate in self._candidates(month, 1, last):
            mask = self._mask(candidate)
            if candidate == month:
                mask &= keep
            if mask:
                year, zero_month = divmod(candidate, 12)
                low = (mask & -mask).bit_length() - 1
                return date(year, zero_month + 1, low).toordinal() - EPOCH_ORDINAL
        return None

    def on_or_before(self, day: int, first: int = -(1 << 62)) -> int | None:
        """The last date from `first` to `day`; None when there is none in 400 years, or after 1968.

        The walk looks a little before `first`: the caller compares.
        """
        if day < _FIRST_DAY:
            return None
        at = date.fromordinal(min(day, _LAST_DAY) + EPOCH_ORDINAL)
        month = at.year * 12 + at.month - 1
        keep = (2 << at.day) - 1
        for candidate in self._candidates(month, -1, first):
            mask = self._mask(candidate)
            if candidate == month:
                mask &= keep
            if mask:
                year, zero_month = divmod(candidate, 12)
                return date(year, zero_month + 1, mask.bit_length() - 1).toordinal() - EPOCH_ORDINAL
        return None

    def _candidates(self, month: int, direction: int, last: int) -> Iterator[int]:
        """Months (year * 12 + month - 1) from `month` towards the date `last`, that the stride and `months` leave."""
        step = direction * self._every
        at = month
        if self._every > 1:
            ahead = (self._origin - month) % self._every
            at = month + (ahead if direction > 0 else (ahead - self._every) % -self._every)
        months, year = self._months, self._year
        limit = month + direction * SILENCE * max(1, self._every if year is None else year[0])
        if _FIRST_DAY <= last <= _LAST_DAY:
            bound = date.fromordinal(last + EPOCH_ORDINAL)
            limit = min(limit * direction, (bound.year * 12 + bound.month - 1) * direction) * direction
        low, high = max(min(month, limit), FIRST_YEAR * 12), min(max(month, limit), LAST_YEAR * 12 + 11)
        while low <= at <= high:
            if at % 12 + 1 not in months:
                at += step
                continue
            if year is not None and (distance := (at // 12 - year[1]) % year[0]):
                # To the nearest month of the next year that counts.
                at = (at // 12 + year[0] - distance) * 12 if direction > 0 else (at // 12 - distance) * 12 + 11
                continue
            yield at
            at += step

    def _mask(self, candidate: int) -> int:
        year, zero_month = divmod(candidate, 12)
        key = _SHAPES[year % 400] * 12 + zero_month
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = self._ask(year, zero_month + 1)
        if mask and self._stride is not None:
            mask &= self._stride.mask(date(year, zero_month + 1, 1).toordinal() - EPOCH_ORDINAL)
        if mask and self._off is not None:
            mask &= ~self._off.single.get((year, zero_month + 1), 0)
        return mask

    def _ask(self, year: int, month: int) -> int:
        mask = 0
        for day in range(1, calendar.monthrange(year, month)[1] + 1):
            item = date(year, month, day)
            if self._belongs(item) and not (self._off is not None and self._off.returns(item)):
                mask |= 1 << day
        return mask


_FIRST_DAY = date(FIRST_YEAR, 1, 1).toordinal() - EPOCH_ORDINAL
_LAST_DAY = date(LAST_YEAR, 12, 31).toordinal() - EPOCH_ORDINAL


def parse_days_off(items: tuple[str, ...]) -> DaysOff | None:
    """Days off from texts: a date `2026-12-25`, a yearly date `12-25`, a weekday `SAT`. None for no items.

    Raises InvalidInput at /calendar/<index>, or at /calendar when no day is left.
    """
    if not items:
        return None
    if len(items) > _MAX_DAYS_OFF:
        raise InvalidInput.at("/calendar", f"at most {_MAX_DAYS_OFF} days off")
    dates: set[date] = set()
    yearly: set[tuple[int, int]] = set()
    weekdays: set[int] = set()
    for index, item in enumerate(items):
        try:
            if len(item) == 10 and item.isascii() and item[4] == item[7] == "-":
                dates.add(date.fromisoformat(item))
            elif len(item) == 5 and item.isascii() and item[2] == "-":
                when = date.fromisoformat(f"2000-{item}")  # a leap year, so that 02-29 is one
                yearly.add((when.month, when.day))
            else:
                weekdays.add(WEEKDAYS.index(item.upper()))
        except ValueError:
            shown = item if len(item) <= 20 else item[:17] + "..."
            raise InvalidInput.at(
                f"/calendar/{index}", f"{shown!r} is not a day off; write 2026-12-25, 12-25 (every year) or SAT"
            ) from None
    if len(weekdays) == 7 or len(yearly) == 366:
        raise InvalidInput.at("/calendar", "these days off leave no day to run on")
    return DaysOff(frozenset(dates), frozenset(yearly), frozenset(weekdays))
