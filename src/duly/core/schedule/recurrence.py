"""Recurrence rules (RFC 5545, RRULE) → values: read and checked here, given their meaning in `recurring`.

Taken: FREQ, INTERVAL, COUNT, UNTIL, WKST and all BY… parts where RFC 5545 allows them, each at most once.
Refused: EXDATE, RDATE, EXRULE (days off go into `calendar`), TZID (the zone goes into `timezone`), BYSETPOS where a
period holds several times of day (its answers could not be bounded), and BYEASTER, which is not in the standard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from duly.core.errors import ScheduleError

FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")
UNITS = {"YEARLY": "year", "MONTHLY": "month", "WEEKLY": "week", "DAILY": "day"}
WEEKDAY_CODES = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

MAX_COUNT = 1_000  # counted through when the schedule is read: a few milliseconds at most
MAX_INTERVAL = 10_000
_MAX_VALUES = 400
_EXAMPLE = "RRULE:FREQ=MONTHLY;BYDAY=1MO;BYHOUR=9;BYMINUTE=0"

_NUMBER = re.compile(r"[+-]?[0-9]{1,5}")
_WEEKDAY = re.compile(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)")
_STAMP = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:T([0-9]{2})([0-9]{2})([0-9]{2})(Z)?)?")
_DTSTART = re.compile(r"DTSTART([;:])(?:([^ \t:]*):)?([0-9TZ]*)[ \t]*")

# BY… part → (lowest, highest, whether negative numbers count from the end)
_RANGES = {
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False),
    "BYSECOND": (0, 59, False),  # 60, for leap seconds, does not exist in the time scale that computers keep
    "BYSETPOS": (1, 366, True),
}

# The table in RFC 5545, section 3.3.10: where a BY… part has no meaning.
_FORBIDDEN = {
    "BYWEEKNO": ("MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY"),
    "BYYEARDAY": ("MONTHLY", "WEEKLY", "DAILY"),
    "BYMONTHDAY": ("WEEKLY",),
    "BYSETPOS": ("DAILY", "HOURLY", "MINUTELY", "SECONDLY"),
}


@dataclass(frozen=True, slots=True)
class Stamp:
    """A date or time as iCalendar writes it: seconds since 1970 on the wall clock, or in UTC when `utc`."""

    seconds: int
    utc: bool
    date_only: bool


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A rule as written. Numbers keep their sign; weekdays are (0 = Monday, n-th or 0 for each)."""

    freq: str
    interval: int = 1
    count: int | None = None
    until: Stamp | None = None
    week_start: int = 0
    months: frozenset[int] = frozenset()
    month_days: frozenset[int] = frozenset()
    year_days: frozenset[int] = frozenset()
    week_numbers: frozenset[int] = frozenset()
    weekdays: frozenset[tuple[int, int]] = frozenset()
    hours: frozenset[int] = frozenset()
    minutes: frozenset[int] = frozenset()
    seconds: frozenset[int] = frozenset()
    positions: frozenset[int] = frozenset()
    start: Stamp | None = None

    def limited(self) -> bool:
        """Whether any BY… part is there."""
        return bool(
            self.months or self.month_days or self.year_days or self.week_numbers or self.weekdays
            or self.hours or self.minutes or self.seconds or self.positions
        )  # fmt: skip


_FIELDS = {
    "BYMONTH": "months",
    "BYMONTHDAY": "month_days",
    "BYYEARDAY": "year_days",
    "BYWEEKNO": "week_numbers",
    "BYDAY": "weekdays",
    "BYHOUR": "hours",
    "BYMINUTE": "minutes",
    "BYSECOND": "seconds",
    "BYSETPOS": "positions",
}


def parse_recurrence(text: str, offset: int, seconds_of: Callable[..., int]) -> Recurrence:
    """`[DTSTART:20260101T090000 ]RRULE:FREQ=…`, upper or lower case. Raises ScheduleError.

    `seconds_of(year, month, day, hour, minute, second)` counts seconds since 1970, or raises ValueError.
    """
    return _Reader(text.upper(), offset, seconds_of).read()


@dataclass(slots=True)
class _Reader:
    text: str
    offset: int
    seconds_of: Callable[..., int]

    def refuse(self, at: int, reason: str, example: str = _EXAMPLE) -> NoReturn:
        raise ScheduleError(reason, position=self.offset + at, example=example)

    def read(self) -> Recurrence:
        at = 0
        values: dict[str, Any] = {}
        if self.text.startswith("DTSTART"):
            match = _DTSTART.match(self.text)
            if match is None or match.group(1) == ";":
                self.refuse(0, "DTSTART takes a time alone; the zone goes into `timezone`", "DTSTART:20260101T090000")
            values["start"] = self.stamp(match.group(3), match.start(3))
            at = match.end()
        if self.text.startswith("RRULE:", at):
            at += len("RRULE:")
        elif not self.text.startswith("FREQ=", at):
            self.refuse(at, "RRULE:FREQ=… should follow; dates to leave out go into `calendar`")
        written: dict[str, int] = {}
        for part in self.text[at:].split(";"):
            name, equals, value = part.partition("=")
            if not equals or not value:
                if not part and at == len(self.text):
                    break
                self.refuse(at, f"{_shown(part)} is not of the form NAME=VALUE")
            if name in written:
                self.refuse(at, f"{name} is there twice")
            written[name] = at
            self.part(name, value, at, at + len(name) + 1, values)
            at += len(part) + 1
        if "freq" not in values:
            self.refuse(0, "a recurrence rule needs a FREQ")
        self.check(values, written)
        return Recurrence(**values)

    def part(self, name: str, value: str, at: int, value_at: int, values: dict[str, Any]) -> None:
        if name == "FREQ":
            if value not in FREQUENCIES:
                self.refuse(value_at, f"{_shown(value)} is not a frequency; they are {', '.join(FREQUENCIES)}")
            values["freq"] = value
        elif name == "INTERVAL":
            values["interval"] = self.number(value, value_at, 1, MAX_INTERVAL, name)
        elif name == "COUNT":
            values["count"] = self.number(value, value_at, 1, MAX_COUNT, name)
        elif name == "UNTIL":
            values["until"] = self.stamp(value, value_at)
        elif name == "WKST":
            if value not in WEEKDAY_CODES:
                self.refuse(value_at, f"{_shown(value)} is not a weekday", "WKST=SU")
            values["week_start"] = WEEKDAY_CODES.index(value)
        elif name in _FIELDS:
            items = value.split(",")
            if len(items) > _MAX_VALUES:
                self.refuse(value_at, f"{name} has more than {_MAX_VALUES} values")
            read = self.weekday if name == "BYDAY" else self.by_number(name)
            found: list[object] = []
            for item in items:
                found.append(read(item, value_at))
                value_at += len(item) + 1
            values[_FIELDS[name]] = frozenset(found)
        else:
            self.refuse(at, f"{_shown(name)} is not a part of a recurrence rule")

    def by_number(self, name: str) -> Callable[[str, int], object]:
        low, high, signed = _RANGES[name]

        def read(item: str, at: int) -> int:
            if item.startswith("-") and signed:
                return -self.number(item[1:], at, low, high, name)
            return self.number(item.removeprefix("+") if signed else item, at, low, high, name)

        return read

    def number(self, text: str, at: int, low: int, high: int, name: str) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            self.refuse(at, f"{name} takes numbers from {low} to {high}, not {_shown(text)}")
        return int(text)

    def weekday(self, item: str, at: int) -> tuple[int, int]:
        match = _WEEKDAY.fullmatch(item)
        if match is None:
            self.refuse(at, f"{_shown(item)} is not a weekday", "BYDAY=MO,FR or BYDAY=1MO or BYDAY=-1FR")
        nth = int(match.group(1) or 0)
        if match.group(1) and not 1 <= abs(nth) <= 53:
            self.refuse(at, f"{item}: the n of an n-th weekday goes from 1 to 53", "BYDAY=1MO")
        return WEEKDAY_CODES.index(match.group(2)), nth

    def stamp(self, text: str, at: int) -> Stamp:
        match = _STAMP.fullmatch(text)
        if match is None:
            self.refuse(at, f"{_shown(text)} is not an iCalendar time", "20261231T235959Z or 20261231T090000")
        numbers = [int(group) for group in match.groups()[:6] if group is not None]
        try:
            seconds = self.seconds_of(*numbers)
        except ValueError:
            self.refuse(at, f"there is no such time as {text}", "20261231T235959Z")
        return Stamp(seconds, utc=match.group(7) is not None, date_only=match.group(4) is None)

    def check(self, values: dict[str, Any], written: dict[str, int]) -> None:
        """The rules about which parts go together."""
        freq = str(values["freq"])
        for name, frequencies in _FORBIDDEN.items():
            if name in written and freq in frequencies:
                self.refuse(written[name], f"{name} cannot stand in a {freq} rule")
        if "COUNT" in written and "UNTIL" in written:
            self.refuse(written["UNTIL"], "a rule ends by COUNT or by UNTIL, not by both")
        weekdays = values.get("weekdays", frozenset())
        assert isinstance(weekdays, frozenset)  # part() made it
        if any(nth for _, nth in weekdays):
            if freq not in ("YEARLY", "MONTHLY"):
                self.refuse(written["BYDAY"], "an n-th weekday needs FREQ=MONTHLY or FREQ=YEARLY")
            if "BYWEEKNO" in written:
                self.refuse(written["BYDAY"], "an n-th weekday cannot stand beside BYWEEKNO")
        if "BYSETPOS" in written:
            for name in ("BYHOUR", "BYMINUTE", "BYSECOND"):
                several = values.get(_FIELDS[name], frozenset())
                assert isinstance(several, frozenset)  # part() made it
                if len(several) > 1:
                    self.refuse(written[name], f"BYSETPOS cannot pick among several times of day; give one {name}")
            if not any(name in written for name in _FIELDS if name != "BYSETPOS"):
                self.refuse(written["BYSETPOS"], "BYSETPOS picks among what another BY… part offers; there is none")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 20 else text[:17] + "...")
