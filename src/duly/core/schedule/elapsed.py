"""Occurrences told by elapsed time: once, at a fixed rate, after a fixed delay. All instants in microseconds UTC."""

from __future__ import annotations

from dataclasses import dataclass

from duly.core.instants import MAX_INSTANT, SECOND
from duly.core.schedule.days import Days, DaysOff
from duly.core.schedule.zones import DAY_SECONDS, Zone

_MAX_SKIPS = 400  # candidates on days off in a row, after which a rate is over: more than a year of daily ones


@dataclass(frozen=True, slots=True)
class Once:
    """A single instant; `wall`: the time on the wall clock that it was named by, in seconds, if it was."""

    at: int
    wall: int | None = None

    def after(self, instant: int) -> int | None:
        """The instant, if it is still to come."""
        return self.at if self.at > instant else None

    def until(self, instant: int) -> int | None:
        """The instant, if it has come."""
        return self.at if self.at <= instant else None


@dataclass(frozen=True, slots=True)
class Delay:
    """A fixed delay from each completion. Only the first run, at `first`, has a time of its own."""

    delay: int
    first: int

    def after(self, instant: int) -> int | None:
        """The first run, if it is still to come."""
        return self.first if self.first > instant else None

    def until(self, instant: int) -> int | None:
        """The first run, if it has come."""
        return self.first if self.first <= instant else None


@dataclass(frozen=True, slots=True)
class Rate:
    """origin + n × every, for the n from `lowest` to `highest` (None: no bound)."""

    every: int
    origin: int
    lowest: int | None = None
    highest: int | None = None

    def after(self, instant: int) -> int | None:
        """The first occurrence later than `instant`."""
        n = (max(instant, -1) - self.origin) // self.every + 1
        if self.lowest is not None:
            n = max(n, self.lowest)
        if self.highest is not None and n > self.highest:
            return None
        at = self.origin + n * self.every
        return at if at <= MAX_INSTANT else None

    def until(self, instant: int) -> int | None:
        """The last occurrence that is not later than `instant`."""
        n = (min(instant, MAX_INSTANT) - self.origin) // self.every
        if self.highest is not None:
            n = min(n, self.highest)
        if self.lowest is not None and n < self.lowest:
            return None
        at = self.origin + n * self.every
        return at if at >= 0 else None

    def count(self, after: int, until: int) -> int:
        """How many occurrences lie in (after, until]."""
        first, last = self.after(after), self.until(until)
        if first is None or last is None or last < first:
            return 0
        return (last - first) // self.every + 1


@dataclass(frozen=True, slots=True)
class WorkingDays:
    """A rate without the occurrences on days off; a delay's runs wait for the first moment of a working day."""

    zone: Zone
    off: DaysOff
    days: Days  # every date that is not off

    def next_start(self, instant: int) -> int | None:
        """`instant` itself on a working day, else the beginning of the next one."""
        day = self._day(instant)
        if not self.off.covers(day):
            return instant
        following = self.days.on_or_after(day)
        if following is None:
            return None
        # Asked again, because a clock change can swallow the whole working day (Samoa, 30 December 2011).
        begin = self.zone.first_instant(following * DAY_SECONDS)[0] * SECOND
        return self.next_start(begin) if begin > instant else None

    def after(self, rate: Rate, instant: int) -> int | None:
        """The first occurrence of `rate` later than `instant` that lies on a working day."""
        at = rate.after(instant)
        for _ in range(_MAX_SKIPS):
            if at is None:
                return None
            begin = self.next_start(at)
            if begin == at:
                return at
            at = None if begin is None else rate.after(begin - 1)
        return None

    def until(self, rate: Rate, instant: int) -> int | None:
        """The last occurrence of `rate` up to `instant` that lies on a working day."""
        at = rate.until(instant)
        for _ in range(_MAX_SKIPS):
            if at is None:
                return None
            day = self._day(at)
            if not self.off.covers(day):
                return at
            previous = self.days.on_or_before(day)
            if previous is None:
                return None
            end = self.zone.first_instant((previous + 1) * DAY_SECONDS)[0] * SECOND
            at = rate.until(end - 1)
        return None

    def _day(self, instant: int) -> int:
        second = instant // SECOND
        return (second + self.zone.stretch(second).offset) // DAY_SECONDS
