"""What a recurrence rule means: its pattern of days and times, or its rate.

YEARLY to DAILY rules are wall times: 09:00 stays 09:00 when the clocks change, by the schedule's `dst`. HOURLY,
MINUTELY and SECONDLY rules follow real time: without BY… parts they are a plain rate from DTSTART; with them, their
interval must divide the larger unit evenly, so that it is the same every day.
COUNT counts what the rule says, before clock changes and days off take anything away.
"""

from __future__ import annotations

import calendar
from dataclasses import replace
from datetime import date, timedelta
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from duly.core.errors import ScheduleError
from duly.core.instants import SECOND
from duly.core.schedule.days import EPOCH_ORDINAL, Days, DaysOff, Stride
from duly.core.schedule.elapsed import Rate
from duly.core.schedule.local_rule import Dst, LocalRule, Pattern, Times
from duly.core.schedule.recurrence import UNITS, Recurrence, Stamp
from duly.core.schedule.zones import DAY_SECONDS, Zone

_NONE: frozenset[int] = frozenset()
_EVERY_MONTH = frozenset(range(1, 13))
_UNIT_SECONDS = {"HOURLY": 3600, "MINUTELY": 60, "SECONDLY": 1}


class Bounded(NamedTuple):
    """A rule with its first and last instant in microseconds UTC; None where the rule itself sees to it."""

    rule: LocalRule | Rate
    first: int | None
    last: int | None
    spelled_out: Recurrence  # with the days and times that its start implies


def recurring(rule: Recurrence, zone: Zone, dst: Dst, start: int, off: DaysOff | None) -> Bounded:
    """The rule from `start` (microseconds UTC) on, unless it has a DTSTART of its own.

    Raises ScheduleError for what cannot be answered.
    """
    first = _second(rule.start, zone) if rule.start is not None else start // SECOND
    wall = first + zone.stretch(first).offset
    if rule.start is not None and not rule.start.utc:
        wall = rule.start.seconds
    last = None
    if rule.until is not None:
        last = _second(rule.until, zone) * SECOND + (SECOND - 1)
        if rule.until.date_only:
            last = zone.first_instant(rule.until.seconds + DAY_SECONDS)[0] * SECOND - 1
    if rule.freq in UNITS:
        rule = _spelled_out(rule, wall)
        pattern = _daily_pattern(rule, wall, None)
        if rule.count is not None:
            pattern = replace(pattern, last=_last_of_count(pattern, rule.count, wall))
        if off is not None:
            pattern = replace(pattern, days=_daily_pattern(rule, wall, off).days)
        return Bounded(LocalRule(pattern, zone, dst, off), None, last, rule)
    if not rule.limited():
        every = rule.interval * _UNIT_SECONDS[rule.freq] * SECOND
        rate = Rate(every, first * SECOND, 0, None if rule.count is None else rule.count - 1)
        return Bounded(rate, None, last, rule)
    times = _subdaily_times(rule, wall % DAY_SECONDS)
    all_days = LocalRule(Pattern(_days(rule, None, None), times), zone, "real")
    if rule.count is not None:
        at: int | None = first - 1
        for _ in range(rule.count):
            following = all_days.after(at) if at is not None else None
            if following is None:
                break
            at = following
        last = None if at is None else at * SECOND
    # Bounded by instants, not walls: in the repeated hour a wall time says neither before nor after.
    return Bounded(LocalRule(Pattern(_days(rule, None, off), times), zone, "real", off), first * SECOND, last, rule)


def _second(stamp: Stamp, zone: Zone) -> int:
    return stamp.seconds if stamp.utc else zone.first_instant(stamp.seconds)[0]


def _daily_pattern(rule: Recurrence, wall: int, off: DaysOff | None) -> Pattern:
    """The pattern of a rule that is spelled out."""
    times = Times(tuple(sorted(rule.hours)), tuple(sorted(rule.minutes)), tuple(sorted(rule.seconds)))
    stride = None
    if rule.interval > 1:
        stride = Stride(UNITS[rule.freq], rule.interval, wall // DAY_SECONDS, rule.week_start)
    return Pattern(_days(rule, stride, off), times, first=wall)


def _spelled_out(rule: Recurrence, wall: int) -> Recurrence:
    """With the day and time that the start implies where the rule names none (RFC 5545, as dateutil reads it)."""
    day, time = divmod(wall, DAY_SECONDS)
    start = date.fromordinal(day + EPOCH_ORDINAL)
    rule = replace(
        rule,
        hours=rule.hours or frozenset({time // 3600}),
        minutes=rule.minutes or frozenset({time // 60 % 60}),
        seconds=rule.seconds or frozenset({time % 60}),
    )
    if rule.week_numbers or rule.year_days or rule.month_days or rule.weekdays:
        return rule
    if rule.freq == "YEARLY":
        return replace(rule, months=rule.months or frozenset({start.month}), month_days=frozenset({start.day}))
    if rule.freq == "MONTHLY":
        return replace(rule, month_days=frozenset({start.day}))
    if rule.freq == "WEEKLY":
        return replace(rule, weekdays=frozenset({(start.weekday(), 0)}))
    return rule


def _last_of_count(pattern: Pattern, count: int, wall: int) -> int:
    for _ in range(count):
        following = pattern.on_or_after(wall)
        if following is None:
            break
        wall = following + 1
    return wall - 1


def _subdaily_times(rule: Recurrence, time: int) -> Times:
    """The times of day of an HOURLY, MINUTELY or SECONDLY rule with BY… parts."""
    hour, minute, second = time // 3600, time // 60 % 60, time % 60
    step = rule.interval * _UNIT_SECONDS[rule.freq]
    hours, minutes, seconds = _ring(24, 1, 0), _ring(60, 1, 0), _ring(60, 1, 0)
    if step % 3600 == 0 and 24 % (step // 3600) == 0:
        hours = _ring(24, step // 3600, hour)
        minutes, seconds = {minute}, {second}
    elif step % 60 == 0 and 60 % (step // 60) == 0:
        minutes, seconds = _ring(60, step // 60, minute), {second}
    elif 60 % step == 0:
        seconds = _ring(60, step, second)
    else:
        raise ScheduleError(
            f"INTERVAL={rule.interval} does not divide the day evenly, so it cannot be combined with BY… parts",
            example="RRULE:FREQ=HOURLY;INTERVAL=2;BYDAY=MO,TU,WE,TH,FR",
        )
    # A part of the frequency's own unit or a larger one filters; of a smaller one it expands (RFC 5545, 3.3.10).
    hours = hours & rule.hours if rule.hours else hours
    if rule.minutes:
        minutes = set(rule.minutes) if rule.freq == "HOURLY" else minutes & rule.minutes
    if rule.seconds:
        seconds = set(rule.seconds) if rule.freq != "SECONDLY" else seconds & rule.seconds
    if not (hours and minutes and seconds):
        raise ScheduleError("the interval never meets the times that the BY… parts allow, so this would never run")
    return Times(tuple(sorted(hours)), tuple(sorted(minutes)), tuple(sorted(seconds)))


def _ring(size: int, step: int, origin: int) -> set[int]:
    return set(range(origin % step, size, step))


def _days(rule: Recurrence, stride: Stride | None, off: DaysOff | None) -> Days:
    key = replace(rule, interval=1, count=None, until=None, start=None, hours=_NONE, minutes=_NONE, seconds=_NONE)
    months = rule.months or _EVERY_MONTH
    if stride is None and off is None:
        return _shared_days(key)
    return Days(_Belongs(key), months, stride, off)


@lru_cache(maxsize=512)
def _shared_days(rule: Recurrence) -> Days:
    return Days(_Belongs(rule), rule.months or _EVERY_MONTH)


class _Belongs:
    """Whether a date fits all BY… parts of a rule."""

    def __init__(self, rule: Recurrence) -> None:
        self._rule = rule
        self._plain = frozenset(weekday for weekday, nth in rule.weekdays if nth == 0)
        self._nth = frozenset((weekday, nth) for weekday, nth in rule.weekdays if nth)
        self._nth_in_year = rule.freq == "YEARLY" and not rule.months
        self._picked: dict[date, frozenset[date]] = {}

    def __call__(self, item: date) -> bool:
        if not self._rule.positions:
            return self._fits(item)
        begin, end = self._period(item)
        picked = self._picked.get(begin)
        if picked is None:
            self._picked.clear()  # dates are asked in order: the last period is all that is worth remembering
            picked = self._picked[begin] = self._pick(begin, end)
        return item in picked

    def _period(self, item: date) -> tuple[date, date]:
        if self._rule.freq == "YEARLY":
            return date(item.year, 1, 1), date(item.year, 12, 31)
        if self._rule.freq == "MONTHLY":
            length = calendar.monthrange(item.year, item.month)[1]
            return item.replace(day=1), item.replace(day=length)
        begin = item - timedelta(days=(item.weekday() - self._rule.week_start) % 7)
        return begin, begin + timedelta(days=6)

    def _pick(self, begin: date, end: date) -> frozenset[date]:
        span = (end - begin).days + 1
        fitting = [item for item in (begin + timedelta(days=days) for days in range(span)) if self._fits(item)]
        picked: set[date] = set()
        for position in self._rule.positions:
            index = position - 1 if position > 0 else len(fitting) + position
            picked.update(islice(fitting, index, index + 1) if index >= 0 else ())
        return frozenset(picked)

    def _fits(self, item: date) -> bool:
        rule = self._rule
        if rule.months and item.month not in rule.months:
            return False
        if rule.weekdays and item.weekday() not in self._plain and not self._fits_nth(item):
            return False
        if rule.month_days and item.day not in rule.month_days:
            length = calendar.monthrange(item.year, item.month)[1]
            if item.day - length - 1 not in rule.month_days:
                return False
        if rule.year_days:
            number = item.timetuple().tm_yday
            if number not in rule.year_days and number - _year_length(item.year) - 1 not in rule.year_days:
                return False
        return not rule.week_numbers or self._fits_week(item)

    def _fits_nth(self, item: date) -> bool:
        if not self._nth:
            return False
        if self._nth_in_year:
            number, length = item.timetuple().tm_yday, _year_length(item.year)
        else:
            number, length = item.day, calendar.monthrange(item.year, item.month)[1]
        weekday = item.weekday()
        return (weekday, (number + 6) // 7) in self._nth or (weekday, -((length - number) // 7) - 1) in self._nth

    def _fits_week(self, item: date) -> bool:
        """Week 1 is the first with four days in the year (ISO 8601, with the rule's own first weekday)."""
        for year in (item.year + 1, item.year, item.year - 1):
            begin = _first_week(year, self._rule.week_start)
            if item >= begin:
                number = (item - begin).days // 7 + 1
                weeks = (_first_week(year + 1, self._rule.week_start) - begin).days // 7
                return number in self._rule.week_numbers or number - weeks - 1 in self._rule.week_numbers
        return False


@lru_cache(maxsize=1024)
def _first_week(year: int, week_start: int) -> date:
    fourth = date(min(year, 9999), 1, 4)
    return fourth - timedelta(days=(fourth.weekday() - week_start) % 7)


def _year_length(year: int) -> int:
    return 366 if calendar.isleap(year) else 365
