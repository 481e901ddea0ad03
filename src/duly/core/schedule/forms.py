"""The forms of a schedule string, each a method: what it means, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NoReturn

from duly.core.errors import InvalidInput, ScheduleError
from duly.core.instants import MAX_INSTANT, SECOND, format_duration, parse_duration, parse_instant
from duly.core.schedule import describe
from duly.core.schedule.cron import MACROS, parse_cron
from duly.core.schedule.days import Days, DaysOff
from duly.core.schedule.elapsed import Delay, Once, Rate, WorkingDays
from duly.core.schedule.local_rule import Dst, LocalRule, clock
from duly.core.schedule.recurrence import MAX_COUNT, Recurrence, Stamp, parse_recurrence
from duly.core.schedule.recurring import recurring
from duly.core.schedule.value import Kind, Schedule
from duly.core.schedule.zones import DAY_SECONDS, EPOCH, Zone

SHORTEST_INTERVAL = 100_000  # microseconds: below it, a scheduler would be a busy loop

_LOCAL_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?(.*)"
)
_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")
_REPEAT = re.compile(r"R([0-9]*)/([^/]*)/([^/]*)", re.IGNORECASE)
_CALENDAR_PERIOD = re.compile(
    r"P(?:([0-9]{1,4})Y)?(?:([0-9]{1,4})M)?(?:([0-9]{1,4})W)?(?:([0-9]{1,4})D)?", re.IGNORECASE
)
_COMPACT_TIME = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})(Z?)")
_DURATION_ALONE = re.compile(r"[0-9]+(?:w|d|h|m|s|ms|us)(?:[0-9]+(?:h|m|s|ms|us))*|P[0-9T][0-9A-Z.]*")

EXAMPLE = "every 15m"
_FORMS = (
    "a schedule is `now`, `in 5m`, `at 2026-12-01T09:00`, `every 15m`, `after 15m`, `0 2 * * *`, `@daily` or RRULE:…"
)


@dataclass(frozen=True, slots=True)
class Options:
    """All that a schedule is made from besides its text; instants in microseconds UTC."""

    zone: Zone
    dst: Dst
    anchor: int
    seed: str
    start: int | None
    end: int | None
    calendar: tuple[str, ...]
    off: DaysOff | None


class Form:
    """One parse: a text and its options, and a method for each form."""

    def __init__(self, text: str, options: Options) -> None:
        self.text = text
        self.options = options
        self.zone = options.zone
        self.dst = options.dst
        self.off = options.off
        self.start = options.start
        self.anchor = options.anchor

    def refuse(self, at: int, reason: str, example: str = EXAMPLE) -> NoReturn:
        raise ScheduleError(reason, position=at, example=example)

    def parse(self) -> Schedule:
        body = self.readable()
        at = len(self.text) - len(self.text.lstrip())
        lowered = body.lower()
        word, _, rest = lowered.partition(" ")
        rest_at = at + len(word) + 1 + len(rest) - len(rest.lstrip())
        rest = self.text[rest_at : at + len(body)]
        if lowered == "now":
            return self.once(self.anchor, at)
        if word == "in" and rest:
            return self.once(self.anchor + self.duration(rest, rest_at, "in 5m"), at)
        if word == "at" and rest:
            return self.once(self.moment(rest, rest_at), rest_at, wall=_named(rest))
        if word == "every" and rest:
            return self.every(rest, rest_at)
        if word == "after" and rest:
            return self.delay(rest, rest_at)
        if lowered.startswith("@"):
            return self.macro(lowered, at)
        if lowered.startswith(("rrule:", "freq=", "dtstart")):
            return self.rrule(body, at)
        if "/p" in lowered and lowered.startswith("r"):
            return self.repeat(body, at)
        if re.match(r"[0-9]{4}-[0-9]{2}-", body):
            return self.once(self.instant(body, at), at)
        return self.cron(body, at)

    def readable(self) -> str:
        """The text without the blanks around it, refused when it holds what no schedule holds."""
        for position, character in enumerate(self.text):
            if not " " <= character <= "~" and character not in "\t\r\n":
                self.refuse(position, f"the character U+{ord(character):04X} has no place in a schedule")
        body = self.text.strip()
        if not body:
            self.refuse(0, f"an empty schedule; {_FORMS}")
        inner = re.search(r"[\r\n]", body)
        if inner and not body.upper().startswith("DTSTART"):
            self.refuse(self.text.index(body) + inner.start(), "a schedule is one line")
        return body.replace("\r", " ").replace("\n", " ")

    # Once

    def once(self, at: int, position: int, wall: int | None = None) -> Schedule:
        if at > MAX_INSTANT:
            self.refuse(position, "later than the year 9999")
        return self.made("once", Once(at, wall), partial(describe.once, at, self.zone), position)

    def instant(self, text: str, at: int) -> int:
        match = _LOCAL_TIME.fullmatch(text)
        if match is not None and not match.group(6):
            self.refuse(at, "a time without offset; with `at` before it, it is a local time", f"at {text[:16]}")
        try:
            return parse_instant(text)
        except InvalidInput as error:
            self.refuse(at, error.detail, "2026-12-01T09:00:00Z")

    def moment(self, text: str, at: int) -> int:
        """A local time in the schedule's zone, or an RFC 3339 time."""
        match = _LOCAL_TIME.fullmatch(text)
        if match is None:
            self.refuse(at, f"{_shown(text)} is not a time", "at 2026-12-01T09:00")
        if match.group(6):
            return self.instant(text, at)
        day, hour, minute, second, fraction = match.groups()[:5]
        try:
            naive = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second or '00'}")
        except ValueError as error:
            self.refuse(at, f"there is no such time as {text}: {error}", "at 2026-12-01T09:00")
        return self.resolved(naive, at) + int((fraction or "").ljust(6, "0"))

    def resolved(self, naive: datetime, at: int) -> int:
        """A single wall time → its instant by the dst mode; of a repeated one, the first."""
        wall = _wall(naive)
        second, gap, _ = self.zone.first_instant(wall)
        if gap:
            if self.dst == "skip":
                self.refuse(
                    at,
                    f"{naive.isoformat()} does not exist in {self.zone.name}, where the clock jumps over it "
                    "(dst is `skip`)",
                    f"at {self.zone.local(second).replace(tzinfo=None).isoformat()}",
                )
            if self.dst == "shift":
                second = wall - self.zone.stretch(second).before
        if not 0 <= second <= MAX_INSTANT // SECOND:
            self.refuse(at, "outside the years 1970 to 9999", "at 2026-12-01T09:00")
        return second * SECOND

    # Rates and delays

    def duration(self, text: str, at: int, example: str) -> int:
        try:
            return parse_duration(text)
        except InvalidInput as error:
            self.refuse(at, error.detail, example)

    def every(self, text: str, at: int) -> Schedule:
        interval_text, separator, origin_text = text.partition(" from ")
        interval = self.duration(interval_text.strip(), at, "every 15m")
        if interval < SHORTEST_INTERVAL:
            self.refuse(at, f"the shortest interval is {format_duration(SHORTEST_INTERVAL)}", "every 1s")
        if not separator:
            origin = 0 if self.start is None else self.start
            return self.made("rate", Rate(interval, origin), partial(describe.rate, interval, None), at)
        origin_at = at + len(interval_text) + len(separator)
        origin_at += len(origin_text) - len(origin_text.lstrip())
        origin_text = origin_text.strip()
        match = _CLOCK.fullmatch(origin_text)
        if match is None:
            # A full time is where the rate begins; a time of day is one that its grid passes through.
            origin = self.moment(origin_text, origin_at)
            told = f"from {self.zone.local(origin // SECOND).replace(tzinfo=None).isoformat()} {self.zone.name}"
            return self.made("rate", Rate(interval, origin, 0), partial(describe.rate, interval, told), at)
        hour, minute, second = (int(group or 0) for group in match.groups())
        begin = 0 if self.start is None else self.start // SECOND
        day = (begin + self.zone.stretch(begin).offset) // DAY_SECONDS if self.start is not None else 0
        wall = day * DAY_SECONDS + hour * 3600 + minute * 60 + second
        origin = self.zone.first_instant(wall)[0] * SECOND
        told = f"on a grid through {clock(wall)} {self.zone.name}"
        return self.made("rate", Rate(interval, origin), partial(describe.rate, interval, told), at)

    def delay(self, text: str, at: int) -> Schedule:
        delay = self.duration(text, at, "after 15m")
        if delay < SHORTEST_INTERVAL:
            self.refuse(at, f"the shortest delay is {format_duration(SHORTEST_INTERVAL)}", "after 1s")
        first: int | None = max(self.anchor, self.start or 0)
        if self.off is not None and first is not None:
            first = _working_days(self.zone, self.off).next_start(first)
        if first is None:
            raise ScheduleError("every day from the start on is a day off", pointer="/calendar")
        return self.made("delay", Delay(delay, first), partial(describe.delay, delay), at)

    # Cron

    def macro(self, lowered: str, at: int) -> Schedule:
        if lowered == "@reboot":
            self.refuse(
                at, "@reboot names no time: duly's jobs belong to a cluster, not to one machine's boot", "@daily"
            )
        expression = MACROS.get(lowered)
        if expression is None:
            self.refuse(at, f"{_shown(lowered)} is not one of {', '.join(MACROS)}", "@daily")
        return self.cron(expression, 0)

    def cron(self, body: str, at: int) -> Schedule:
        if _DURATION_ALONE.fullmatch(body):
            self.refuse(at, "a duration alone could mean a rate, a delay or once", f"every {body}")
        if not re.match(r"[0-9*?HhLl]", body):
            self.refuse(at, f"{_shown(body)} is not a schedule; {_FORMS}")
        cron = parse_cron(body, at, self.options.seed)
        mode = "real" if cron.follows_real_time else self.dst
        rule = LocalRule(cron.pattern(self.off), self.zone, mode, self.off)
        if rule.pattern.on_or_after(0) is None:
            raise cron.impossible(self.off is not None and cron.pattern(None).on_or_after(0) is not None)
        return self.made("cron", rule, partial(describe.cron, cron.canonical, cron.dates.either, self.zone), at)

    # Recurrences

    def rrule(self, body: str, at: int) -> Schedule:
        rule = parse_recurrence(body, at, _seconds_of)
        return self.recurring("rrule", rule, None, at)

    def repeat(self, body: str, at: int) -> Schedule:
        example = "R12/2026-01-01T00:00:00Z/PT1H"
        match = _REPEAT.fullmatch(body)
        if match is None:
            self.refuse(at, "a repeat has a count, a start and a period between slashes", example)
        count_text, start_text, period = match.groups()
        if count_text and (len(count_text) > 9 or int(count_text) == 0):
            self.refuse(at + 1, "the count goes from 1 to 999999999; without one it repeats for ever", example)
        count = int(count_text) if count_text else None
        origin = self.repeat_start(start_text, at + match.start(2))
        calendar_period = _CALENDAR_PERIOD.fullmatch(period)
        if calendar_period is None or len(period) < 3:
            every = self.duration(period, at + match.start(3), example)
            if every < SHORTEST_INTERVAL:
                self.refuse(at + match.start(3), f"the shortest period is {format_duration(SHORTEST_INTERVAL)}", "PT1S")
            told = partial(describe.repeat, count, describe.elapsed(every), origin, self.zone)
            return self.made("repeat", Rate(every, origin, 0, None if count is None else count - 1), told, at)
        if count is not None and count > MAX_COUNT:
            self.refuse(at + 1, f"a repeat by days or longer counts to {MAX_COUNT} at most", example)
        years, months, weeks, days = (int(group or 0) for group in calendar_period.groups())
        if (years or months) and (weeks or days):
            self.refuse(at + match.start(3), "a period mixes months with days", "R/2026-01-01T00:00:00Z/P1M")
        interval = years * 12 + months or weeks * 7 + days
        if interval == 0:
            self.refuse(at + match.start(3), "a period of nothing", example)
        rule = self.nominal(interval, bool(years or months), origin, count)
        period = describe.calendar(years, months, weeks, days)
        told = partial(describe.repeat, count, period, origin, self.zone)
        return self.recurring("repeat", rule, told, at)

    def nominal(self, interval: int, monthly: bool, origin: int, count: int | None) -> Recurrence:
        """A period of days or months as a rule that keeps the wall time; short months give their last day."""
        start = Stamp(origin // SECOND, utc=True, date_only=False)
        if not monthly:
            return Recurrence("DAILY", interval, count, start=start)
        day = self.zone.local(origin // SECOND).day
        days, positions = frozenset({day}), frozenset[int]()
        if day > 28:
            days, positions = frozenset(range(28, day + 1)), frozenset({-1})
        return Recurrence("MONTHLY", interval, count, month_days=days, positions=positions, start=start)

    def repeat_start(self, text: str, at: int) -> int:
        match = _COMPACT_TIME.fullmatch(text.upper())
        if match:
            year, month, day, hour, minute, second, offset = match.groups()
            text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{offset}"
        return self.moment(text, at)

    def recurring(self, kind: Kind, rule: Recurrence, told: Callable[[], str] | None, at: int) -> Schedule:
        begin = self.anchor if self.start is None else self.start
        try:
            bounded = recurring(rule, self.zone, self.dst, begin, self.off)
        except ScheduleError as error:
            self.refuse(at, error.reason, error.example)
        told = told or partial(describe.recurrence, bounded.spelled_out, self.zone)
        return self.made(kind, bounded.rule, told, at, bounded.first, bounded.last)

    def made(
        self,
        kind: Kind,
        rule: Once | Delay | Rate | LocalRule,
        told: Callable[[], str],
        at: int,
        first: int | None = None,
        last: int | None = None,
    ) -> Schedule:
        """The schedule, if it fires at all."""
        working, end = None, self.options.end
        if self.off is not None and not isinstance(rule, LocalRule):
            working = _working_days(self.zone, self.off)
        schedule = Schedule(
            kind=kind,
            text=self.text,
            timezone=self.zone.name,
            dst=self.dst,
            start=self.start,
            end=end,
            calendar=self.options.calendar,
            anchor=self.anchor,
            seed=self.options.seed,
            _rule=rule,
            _zone=self.zone,
            _first=max(self.start or 0, first or 0),
            _last=min(MAX_INSTANT if end is None else end, MAX_INSTANT if last is None else last),
            _working=working,
            _sentence=partial(_sentence, told, self.options),
        )
        if isinstance(rule, Once) and working is not None and working.next_start(rule.at) != rule.at:
            raise ScheduleError("this time is on one of the days off", position=at, pointer="/calendar")
        if schedule.next_after(-1) is None:
            self.never(at)
        return schedule

    def never(self, at: int) -> NoReturn:
        parts = [name for name, given in (("start", self.start), ("end", self.options.end)) if given is not None]
        if self.off is not None:
            parts.append("calendar")
        within = f" within its {' and '.join(parts)}" if parts else ""
        self.refuse(at, f"this would never run{within}")


def _sentence(told: Callable[[], str], options: Options) -> str:
    return told() + describe.limits(options.start, options.end, options.calendar, options.zone)


def _working_days(zone: Zone, off: DaysOff) -> WorkingDays:
    return WorkingDays(zone, off, Days(lambda _: True, off=off))


def _seconds_of(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    if not 1970 <= year <= 9998:
        raise ValueError("year out of range")
    return _wall(datetime(year, month, day, hour, minute, second))


def _named(text: str) -> int | None:
    """The wall time of a local time that `moment` has taken; None if it has an offset, and so is an instant."""
    match = _LOCAL_TIME.fullmatch(text)
    if match is None or match.group(6):
        return None
    day, hour, minute, second = match.groups()[:4]
    return _wall(datetime.fromisoformat(f"{day}T{hour}:{minute}:{second or '00'}"))


def _wall(naive: datetime) -> int:
    since = naive - EPOCH
    return since.days * DAY_SECONDS + since.seconds


def _shown(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:27] + "...")
