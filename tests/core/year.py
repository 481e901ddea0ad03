"""A whole year of every kind of schedule, against a scan of its minutes that knows nothing of how duly walks.

Wall times: every minute that a calendar of the year has is asked whether it fits; what fits is turned into instants by
PEP 495 alone (in a gap when the way to UTC and back does not return, repeated when its two folds differ).
Real time: every minute of UTC is asked what the clock on the wall shows; or plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from duly.core.instants import DAY, HOUR, MINUTE, SECOND
from duly.core.schedule import parse_schedule

MODES = ("cron", "shift", "skip", "both")
YEARS = (
    ("Europe/Berlin", 2027),
    ("America/New_York", 2027),
    ("Australia/Lord_Howe", 2027),  # half an hour
    ("Pacific/Apia", 2027),
    ("UTC", 2027),
    ("Pacific/Apia", 2011),  # a day that does not exist, and clock changes
)
Fits = Callable[[datetime], bool]


class Kind(msgspec.Struct, frozen=True):
    """A schedule and what it means: `wall` minutes, minutes of `real` time as the wall shows them, or a `rate`, µs."""

    text: str
    wall: Fits | None = None
    real: Fits | None = None
    rate: int = 0


def at(*times: tuple[int, int]) -> Fits:
    """These hours and minutes of every day."""
    wanted = set(times)
    return lambda wall: (wall.hour, wall.minute) in wanted


def last_sunday(wall: datetime) -> bool:
    """02:30 on the last Sunday of a month: the clocks of Europe change on two of them."""
    week_on = (wall + timedelta(days=7)).month != wall.month
    return week_on and wall.weekday() == 6 and (wall.hour, wall.minute) == (2, 30)


KINDS = (
    Kind("30 2 * * *", wall=at((2, 30))),
    Kind("0 2 * * *", wall=at((2, 0))),
    Kind("15,45 1-3 * * *", wall=at(*[(h, m) for h in (1, 2, 3) for m in (15, 45)])),
    Kind("0 0 * * *", wall=at((0, 0))),
    Kind("45 1 * * SUN", wall=lambda wall: wall.weekday() == 6 and (wall.hour, wall.minute) == (1, 45)),
    Kind("30 2 L * *", wall=lambda wall: (wall + timedelta(days=1)).day == 1 and (wall.hour, wall.minute) == (2, 30)),
    Kind("30 9 1,31 * *", wall=lambda wall: wall.day in (1, 31) and (wall.hour, wall.minute) == (9, 30)),
    Kind("RRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0", wall=at((2, 30))),
    Kind("RRULE:FREQ=MONTHLY;BYDAY=-1SU;BYHOUR=2;BYMINUTE=30;BYSECOND=0", wall=last_sunday),
    Kind("RRULE:FREQ=WEEKLY;BYDAY=SU;BYHOUR=1,2;BYMINUTE=15;BYSECOND=0",
         wall=lambda wall: wall.weekday() == 6 and wall.hour in (1, 2) and wall.minute == 15),
    Kind("R/{year}-01-01T02:30/P1D", wall=at((2, 30))),
    Kind("*/20 * * * *", real=lambda wall: wall.minute % 20 == 0),
    Kind("30 */6 * * *", real=lambda wall: wall.hour % 6 == 0 and wall.minute == 30),
    Kind("0 * * * *", real=lambda wall: wall.minute == 0),
    Kind("every 45m", rate=45 * MINUTE),
    Kind("every 1d", rate=DAY),
    Kind("R/{year}-01-01T00:00:00Z/PT12H", rate=12 * HOUR),
    Kind("RRULE:FREQ=HOURLY;INTERVAL=7", rate=7 * HOUR),
)  # fmt: skip


@lru_cache(maxsize=2)
def calendar(year: int) -> list[datetime]:
    """Every wall minute of the year, and of two days on either side."""
    first = datetime.fromisoformat(f"{year}-01-01") - timedelta(days=2)
    days = (datetime.fromisoformat(f"{year + 1}-01-03") - first).days
    return [first + timedelta(minutes=minute) for minute in range(days * 1440)]


@lru_cache(maxsize=128)
def fitting(text: str, year: int) -> list[datetime]:
    """The wall minutes of a kind."""
    fits = next(kind.wall for kind in KINDS if kind.text == text)
    assert fits is not None
    return [wall for wall in calendar(year) if fits(wall)]


@lru_cache(maxsize=2)
def shown(zone: str, year: int) -> list[tuple[int, datetime]]:
    """Every minute of UTC in the year, with what the wall shows."""
    info = ZoneInfo(zone)
    first = datetime(year, 1, 1, tzinfo=UTC)
    count = (datetime(year + 1, 1, 1, tzinfo=UTC) - first).days * 1440
    moments = (first + timedelta(minutes=minute) for minute in range(count))
    return [(micro(moment), moment.astimezone(info).replace(tzinfo=None)) for moment in moments]


def micro(moment: datetime) -> int:
    """µs since 1970."""
    return round(moment.timestamp()) * SECOND


def gap_end(wall: datetime, info: ZoneInfo) -> int:
    """The first instant that the clock shows after a wall time in a gap."""
    later = wall
    while not exists(later, info):
        later += timedelta(minutes=1)
    return micro(later.replace(tzinfo=info))


def exists(wall: datetime, info: ZoneInfo) -> bool:
    """Its way to UTC and back returns."""
    return wall.replace(tzinfo=info).astimezone(UTC).astimezone(info).replace(tzinfo=None) == wall


def expected(kind: Kind, zone: str, year: int, mode: str) -> list[int]:
    """The instants of the year, by scanning."""
    begin, end = micro(datetime(year, 1, 1, tzinfo=UTC)), micro(datetime(year + 1, 1, 1, tzinfo=UTC))
    if kind.rate:
        return list(range(begin, end, kind.rate))
    if kind.real is not None:
        return [instant for instant, wall in shown(zone, year) if kind.real(wall)]
    info = ZoneInfo(zone)
    found: set[int] = set()
    for wall in fitting(kind.text, year):
        first, second = micro(wall.replace(tzinfo=info)), micro(wall.replace(tzinfo=info, fold=1))
        if not exists(wall, info):
            end_of_gap = gap_end(wall, info)
            found.update({"cron": [end_of_gap], "both": [end_of_gap], "shift": [first], "skip": []}[mode])
        else:
            found.add(first)
            if mode == "both":
                found.add(second)
    return sorted(instant for instant in found if begin <= instant < end)


def compare(kind: Kind, zone: str, year: int, mode: str) -> tuple[int, list[int]]:
    """How many instants the scan finds, and those that it and the schedule do not share, forwards or backwards."""
    begin, end = micro(datetime(year, 1, 1, tzinfo=UTC)), micro(datetime(year + 1, 1, 1, tzinfo=UTC))
    anchor = begin if kind.rate or "P1D" in kind.text else begin - 3 * DAY
    schedule = parse_schedule(kind.text.format(year=year), timezone=zone, dst=mode, anchor=anchor)
    truth = expected(kind, zone, year, mode)
    forwards = [instant for instant in schedule.between(begin - 1, end, 1_000_000) if instant < end]
    backwards = list(walk_back(schedule.latest_until, end - 1, begin, 500))
    wrong = set(forwards) ^ set(truth) | set(backwards) ^ set(truth[-500:])
    return len(truth), sorted(wrong)


def walk_back(latest_until: Callable[[int], int | None], end: int, begin: int, most: int) -> Iterator[int]:
    """The last occurrences until `end`, newest first."""
    instant = latest_until(end)
    while instant is not None and instant >= begin and most:
        yield instant
        most -= 1
        instant = latest_until(instant - 1)
