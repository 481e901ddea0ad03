"""Cron expressions → patterns: five fields (minute hour day month weekday), or six with seconds first.

    *            every value                    5-10   a range            FRI#2  the second Friday of the month
    */15         every 15th                     1,5    a list             5L     the last Friday
    5/15         from 5 in steps of 15          ?      as * in the day    L      the last day of the month
    H            one value, spread by `seed`           and weekday fields LW     the last weekday (MON-FRI) of it
    H(0-29)      the same within a range        H/15   every 15th from a spread start

Fields, names and the rule for days are those of Vixie cron (crontab(5)): when day and weekday are both restricted, a
date that fits either counts; when one starts with `*`, it must fit both. `L`, `LW`, `5L` and `#` are Quartz's, in
cronsim's spelling; `H` is Jenkins's, hashed with BLAKE2b so that it is the same in every process.
"""

from __future__ import annotations

import calendar
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache

from duly.core.errors import ScheduleError
from duly.core.schedule.days import LONGEST, MONTHS, Days, DaysOff
from duly.core.schedule.local_rule import Pattern, Times

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_SUNDAY_FIRST = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_ITEM = re.compile(
    r"(?:(?P<star>[*?])|(?P<hash>H)(?:\((?P<hlow>[0-9]{1,4})-(?P<hhigh>[0-9]{1,4})\))?"
    r"|(?P<special>LW|L)|(?P<low>[0-9]{1,4}|[A-Z]{3})(?:(?P<last>L)|#(?P<nth>[0-9]{1,4})|-(?P<high>[0-9]{1,4}|[A-Z]{3}))?)"
    r"(?:/(?P<step>[0-9]{1,4}))?"
)
_MAX_FIELD = 250


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    example: str
    names: tuple[str, ...] = ()
    first_name: int = 0
    spread: int | None = None  # the highest value that a bare H takes, when not `high`

    def values(self) -> int:
        """How many different values there are."""
        return self.high - self.low + 1


_SECOND = _Field("second", 0, 59, "0 or */10")
_MINUTE = _Field("minute", 0, 59, "0 or */15")
_HOUR = _Field("hour", 0, 23, "2 or 9-17")
_DAY = _Field("day of month", 1, 31, "1, 1,15 or L", spread=28)
_MONTH = _Field("month", 1, 12, "1-6 or JAN,JUL", MONTHS, 1)
_WEEKDAY = _Field("weekday", 0, 7, "MON-FRI or 5L", _SUNDAY_FIRST, 0, spread=6)
_FIELDS = (_SECOND, _MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)
_EXAMPLE = "0 2 * * *"


@dataclass(frozen=True, slots=True)
class _Parsed:
    """One field: its plain values, and what only the day fields have."""

    values: frozenset[int]
    starred: bool
    text: str
    last: bool = False  # L
    last_weekday: bool = False  # LW
    last_of: frozenset[int] = frozenset()  # 5L
    nth: frozenset[tuple[int, int]] = frozenset()  # FRI#2


@dataclass(frozen=True, slots=True)
class _DateRule:
    """Which dates: hashable, so that equal expressions share one Days."""

    months: frozenset[int]
    days: frozenset[int]
    last: bool
    last_weekday: bool
    weekdays: frozenset[int]  # 0 = Monday, as in datetime
    last_of: frozenset[int]
    nth: frozenset[tuple[int, int]]
    either: bool

    def belongs(self, item: date) -> bool:
        """Whether the date fits, by its month, day and weekday."""
        if item.month not in self.months:
            return False
        if self.either:
            return self._fits_day(item) or self._fits_weekday(item)
        return self._fits_day(item) and self._fits_weekday(item)

    def _fits_day(self, item: date) -> bool:
        if item.day in self.days:
            return True
        if not (self.last or self.last_weekday):
            return False
        first, length = calendar.monthrange(item.year, item.month)
        if self.last and item.day == length:
            return True
        beyond_friday = max(0, (first + length - 1) % 7 - 4)
        return self.last_weekday and item.day == length - beyond_friday

    def _fits_weekday(self, item: date) -> bool:
        weekday = item.weekday()
        if weekday in self.weekdays or (weekday, (item.day + 6) // 7) in self.nth:
            return True
        return weekday in self.last_of and item.day + 7 > calendar.monthrange(item.year, item.month)[1]


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. `canonical` has six fields, with every H replaced by what it came to."""

    canonical: tuple[str, ...]
    times: Times
    dates: _DateRule
    follows_real_time: bool
    positions: tuple[int, ...] = field(compare=False)

    def pattern(self, off: DaysOff | None) -> Pattern:
        """The wall times of the expression, without the days off."""
        return Pattern(_days(self.dates, off), self.times)

    def impossible(self, day_off: bool) -> ScheduleError:
        """The error for an expression that no date fits."""
        if day_off:
            return ScheduleError("every date of this schedule is one of the days off", pointer="/calendar")
        dates = self.dates
        longest = max(LONGEST[month - 1] for month in dates.months)
        if dates.days and min(dates.days) > longest:
            months = ", ".join(MONTHS[month - 1] for month in sorted(dates.months))
            reason = f"there is no day {min(dates.days)} in {months}, so this would never run"
        else:
            reason = "no date fits the day, month and weekday fields, so this would never run"
        return ScheduleError(reason, position=self.positions[3], example="0 0 L * * (the last day of every month)")


def parse_cron(text: str, offset: int, seed: str) -> Cron:
    """The expression at `offset` of the schedule, upper or lower case. Raises ScheduleError."""
    tokens = [(match.group(), offset + match.start()) for match in re.finditer(r"[^ \t]+", text)]
    if len(tokens) not in (5, 6):
        raise ScheduleError(
            "a cron expression has 5 fields (minute hour day month weekday) or 6 (second first); "
            f"this has {len(tokens)}",
            position=offset,
            example=_EXAMPLE,
        )
    if len(tokens) == 5:
        tokens.insert(0, ("0", offset))
    parsed = [
        _parse_field(kind, index, token, position, seed)
        for index, (kind, (token, position)) in enumerate(zip(_FIELDS, tokens, strict=True))
    ]
    second, minute, hour, day, month, weekday = parsed
    dates = _DateRule(
        months=month.values,
        days=day.values,
        last=day.last,
        last_weekday=day.last_weekday,
        weekdays=_monday_first(weekday.values),
        last_of=_monday_first(weekday.last_of),
        nth=frozenset(((value + 6) % 7, nth) for value, nth in weekday.nth),
        either=not (day.starred or weekday.starred),
    )
    return Cron(
        canonical=tuple(one.text for one in parsed),
        times=_times(hour.values, minute.values, second.values),
        dates=dates,
        follows_real_time=minute.starred or hour.starred,
        positions=tuple(position for _, position in tokens),
    )


@lru_cache(maxsize=1024)
def _times(hours: frozenset[int], minutes: frozenset[int], seconds: frozenset[int]) -> Times:
    return Times(tuple(sorted(hours)), tuple(sorted(minutes)), tuple(sorted(seconds)))


def _days(dates: _DateRule, off: DaysOff | None) -> Days:
    return _shared_days(dates) if off is None else Days(dates.belongs, dates.months, off=off)


@lru_cache(maxsize=1024)
def _shared_days(dates: _DateRule) -> Days:
    return Days(dates.belongs, dates.months)


def _monday_first(values: frozenset[int]) -> frozenset[int]:
    return frozenset((value + 6) % 7 for value in values)


@lru_cache(maxsize=1024)
def _whole(kind: _Field) -> _Parsed:
    return _Parsed(frozenset(range(kind.low, kind.high + 1)), True, "*")


def _parse_field(kind: _Field, index: int, text: str, position: int, seed: str) -> _Parsed:
    if text == "*" or (text == "?" and kind in (_DAY, _WEEKDAY)):
        return _whole(kind)
    if len(text) > _MAX_FIELD:
        raise ScheduleError(f"the {kind.name} field is longer than {_MAX_FIELD} characters", position=position)
    values: set[int] = set()
    texts: list[str] = []
    last = last_weekday = False
    last_of: set[int] = set()
    nth: set[tuple[int, int]] = set()
    at = position
    for term in text.upper().split(","):
        item = _Item(kind, term, at, _ITEM.fullmatch(term))
        at += len(term) + 1
        if item.match is None:
            raise item.unreadable()
        group = item.match.group
        if group("special"):
            last, last_weekday = item.special(last, last_weekday)
            texts.append(term)
        elif group("last"):
            last_of.add(item.last_of())
            texts.append(term)
        elif group("nth"):
            nth.add(item.nth())
            texts.append(term)
        else:
            found, canonical = item.plain(lambda: _digest(seed, index))
            values.update(found)
            texts.append(canonical)
    return _Parsed(
        values=frozenset(values),
        starred=text[0] in "*?",
        text=",".join(texts),
        last=last,
        last_weekday=last_weekday,
        last_of=frozenset(last_of),
        nth=frozenset(nth),
    )


def _digest(seed: str, index: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class _Item:
    """One term of a comma-separated list."""

    kind: _Field
    term: str
    position: int
    match: re.Match[str] | None

    def error(self, reason: str, example: str = "") -> ScheduleError:
        return ScheduleError(reason, position=self.position, example=example or self.kind.example)

    def unreadable(self) -> ScheduleError:
        shown = self.term if len(self.term) <= 20 else self.term[:17] + "..."
        if not shown:
            return self.error(f"the {self.kind.name} field has an empty item")
        return self.error(f"{shown!r} is not something the {self.kind.name} field can hold")

    def number(self, text: str) -> int:
        kind = self.kind
        if text.isdigit():
            value = int(text)
            if not kind.low <= value <= kind.high:
                article = "an" if kind.name == "hour" else "a"
                raise self.error(f"{text} is not {article} {kind.name} ({kind.low}-{kind.high})")
            return value
        if text not in kind.names:
            raise self.unreadable()
        return kind.names.index(text) + kind.first_name

    def special(self, last: bool, last_weekday: bool) -> tuple[bool, bool]:
        if self.kind is not _DAY:
            raise self.error("L and LW alone belong into the day-of-month field", "0 0 L * *")
        if self.group("step"):
            raise self.error("L and LW take no step", "0 0 L * *")
        return last or self.group("special") == "L", last_weekday or self.group("special") == "LW"

    def last_of(self) -> int:
        if self.kind is not _WEEKDAY or self.group("step"):
            raise self.error(f"{self.term!r}: L after a weekday belongs into the weekday field, without a step", "5L")
        return self.number(self.group("low")) % 7

    def nth(self) -> tuple[int, int]:
        if self.kind is not _WEEKDAY or self.group("step"):
            raise self.error(f"{self.term!r}: # belongs into the weekday field, without a step", "0 0 * * FRI#2")
        nth = int(self.group("nth"))
        if not 1 <= nth <= 5:
            raise self.error("a month has a 1st to a 5th of each weekday", "0 0 * * FRI#2")
        return self.number(self.group("low")) % 7, nth

    def plain(self, digest: Callable[[], int]) -> tuple[range, str]:
        """Stars, numbers, ranges, H and their steps: (values, canonical text)."""
        kind = self.kind
        step = self.step()
        if self.group("star"):
            if self.term[0] == "?" and (step is not None or kind not in (_DAY, _WEEKDAY)):
                raise self.error("? stands alone in the day-of-month or weekday field", "0 0 ? * MON")
            return range(kind.low, kind.high + 1, step or 1), "*" if step is None else f"*/{step}"
        if self.group("hash"):
            low, high = self.hash_range()
            if step is None:
                value = low + digest() % (high - low + 1)
                return range(value, value + 1), str(value)
            first = low + digest() % min(step, high - low + 1)
            return range(first, high + 1, step), f"{first}-{high}/{step}"
        low = self.number(self.group("low"))
        if not self.group("high"):
            if step is None:
                return range(low, low + 1), str(low)
            return range(low, kind.high + 1, step), f"{low}/{step}"
        high = self.number(self.group("high"))
        if kind is _WEEKDAY and high == 0 < low:
            high = 7  # FRI-SUN
        if high < low:
            start, end = self.group("low"), self.group("high")
            named = bool(kind.names) and not start.isdigit()
            bottom, top = (kind.names[0], kind.names[-1]) if named else (str(kind.low), str(kind.high))
            raise self.error(f"the range {start}-{end} runs backwards", f"{start}-{top},{bottom}-{end}")
        return range(low, high + 1, step or 1), f"{low}-{high}" + (f"/{step}" if step else "")

    def step(self) -> int | None:
        text = self.match.group("step") if self.match else None
        if text is None:
            return None
        step = int(text)
        size = 7 if self.kind is _WEEKDAY else self.kind.values()
        if step == 0:
            raise self.error("a step of 0 goes nowhere")
        if step > size:
            unit = {"second": "s", "minute": "m", "hour": "h"}.get(self.kind.name)
            hint = f"every {step}{unit}" if unit else ""
            raise self.error(f"a step of {step} is larger than the {self.kind.name} field ({size} values)", hint)
        return step

    def hash_range(self) -> tuple[int, int]:
        kind = self.kind
        if not self.group("hlow"):
            return kind.low, kind.high if kind.spread is None else kind.spread
        low, high = self.number(self.group("hlow")), self.number(self.group("hhigh"))
        if high < low:
            raise self.error(f"the range {low}-{high} runs backwards", "H(0-29)")
        return low, high

    def group(self, name: str) -> str:
        assert self.match is not None  # the caller has looked
        return self.match.group(name)
