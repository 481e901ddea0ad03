"""English sentences about schedules. Cron's own come from cronsim."""

from __future__ import annotations

from cronsim.explain import Expression

from duly.core.instants import HOUR, MINUTE, SECOND, format_duration
from duly.core.schedule.recurrence import Recurrence
from duly.core.schedule.zones import Zone

_UNITS = {
    "YEARLY": "year",
    "MONTHLY": "month",
    "WEEKLY": "week",
    "DAILY": "day",
    "HOURLY": "hour",
    "MINUTELY": "minute",
    "SECONDLY": "second",
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def once(at: int, zone: Zone) -> str:
    """`Once, at 2026-12-01 09:00:00 Europe/Berlin`."""
    return f"Once, at {_local(at, zone)}"


def rate(every: int, told: str | None) -> str:
    """`Every 15 minutes, on a grid through 09:00 UTC`."""
    return f"Every {elapsed(every)}" + (f", {told}" if told else "")


def delay(delay: int) -> str:
    """`15 minutes after the previous run has completed`."""
    return f"{_span(delay)} after the previous run has completed"


def cron(canonical: tuple[str, ...], either: bool, zone: Zone) -> str:
    """`At 02:00 every day, Europe/Berlin time`."""
    # cronsim reads the canonical fields: six, without ? and H. Its "on the 13th and on Friday" sounds like Friday 13th.
    told = Expression(list(canonical)).explain()
    if either:
        before, _, after = told.rpartition(" and on ")
        told = f"{before} or on {after}"
    return f"{told}, {zone.name} time"


def elapsed(every: int) -> str:
    """What a rate (µs) comes every: `hour`, `15 minutes`. Never `day`, which clock changes make longer or shorter."""
    return "24 hours" if every == 24 * HOUR else _span(every).removeprefix("1 ")


def calendar(years: int, months: int, weeks: int, days: int) -> str:
    """What a period of the calendar comes every: `month`, `18 months`, `2 weeks`, `day`."""
    if years or months:
        count, unit = (years * 12 + months, "month") if months else (years, "year")
    else:
        count, unit = (weeks * 7 + days, "day") if days else (weeks, "week")
    return unit if count == 1 else f"{count} {unit}s"


def repeat(count: int | None, period: str, origin: int, zone: Zone) -> str:
    """`12 times, every hour from 2026-01-01 00:00:00 UTC`."""
    times = "" if count is None else ("Once, " if count == 1 else f"{count} times, ")
    told = f"{times}every {period} from {_local(origin, zone)}"
    return told[0].upper() + told[1:]


def recurrence(rule: Recurrence, zone: Zone) -> str:
    """`Every month on the first Monday at 09:00, Europe/Berlin time`."""
    unit = _UNITS[rule.freq]
    told = f"Every {unit}" if rule.interval == 1 else f"Every {rule.interval} {unit}s"
    if rule.months:
        told += " in " + _list([_MONTHS[month - 1] for month in sorted(rule.months)])
    if rule.week_numbers:
        told += " in week " + _list([str(number) for number in sorted(rule.week_numbers)])
    days: list[str] = []
    if rule.weekdays:
        days.append(_list([_weekday(weekday, nth) for weekday, nth in sorted(rule.weekdays)]))
    if rule.month_days:
        days.append("day " + _list([_from_end(number) for number in sorted(rule.month_days)]))
    if rule.year_days:
        days.append("day " + _list([_from_end(number) for number in sorted(rule.year_days)]) + " of the year")
    if days:
        told += " on " + " that is ".join(days)
    if rule.positions:
        told += ", of these only number " + _list([_from_end(number) for number in sorted(rule.positions)])
    if rule.hours or rule.minutes or rule.seconds:
        told += _times(rule)
    told += f", {zone.name} time"
    if rule.count is not None:
        told += f", {rule.count} times" if rule.count > 1 else ", once"
    return told


def limits(start: int | None, end: int | None, calendar: tuple[str, ...], zone: Zone) -> str:
    """`, from …, until …, except on SAT, SUN and 12-25`, or nothing."""
    told = ""
    if start is not None:
        told += f", not before {_local(start, zone)}"
    if end is not None:
        told += f", not after {_local(end, zone)}"
    if calendar:
        shown = list(calendar[:5]) + ([f"{len(calendar) - 5} more days"] if len(calendar) > 5 else [])
        told += f", except on {_list(shown)}"
    return told


def _times(rule: Recurrence) -> str:
    if len(rule.hours) == 1 and len(rule.minutes) <= 1 and len(rule.seconds) <= 1 and rule.minutes:
        (hour,), (minute,) = rule.hours, rule.minutes
        seconds = "".join(f":{second:02}" for second in rule.seconds if second)
        return f" at {hour:02}:{minute:02}{seconds}"
    told = ""
    for name, values in (("hour", rule.hours), ("minute", rule.minutes), ("second", rule.seconds)):
        if values:
            told += f" at {name} {_list([str(value) for value in sorted(values)])}"
    return told


def _weekday(weekday: int, nth: int) -> str:
    if nth == 0:
        return _DAYS[weekday]
    if nth == -1:
        return f"the last {_DAYS[weekday]}"
    if nth < 0:
        return f"the {_ordinal(-nth)} last {_DAYS[weekday]}"
    return f"the {_ordinal(nth)} {_DAYS[weekday]}"


def _from_end(number: int) -> str:
    return str(number) if number > 0 else f"{-number} from the end"


def _ordinal(number: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth")
    if number <= len(words):
        return words[number - 1]
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 % 10 != 1 else 0, "th")
    return f"{number}{suffix}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _span(us: int) -> str:
    for size, unit in ((24 * HOUR, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second")):
        if us % size == 0 and us < 100 * size:
            count = us // size
            return f"{count} {unit}s" if count > 1 else f"{count} {unit}"
    return format_duration(us)


def _local(at: int, zone: Zone) -> str:
    moment = zone.local(at // SECOND).replace(tzinfo=None, microsecond=at % SECOND)
    return f"{moment.isoformat(sep=' ')} {zone.name}"
