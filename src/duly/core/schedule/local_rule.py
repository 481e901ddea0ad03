"""Occurrences told by the wall clock, and what a clock change does to them: the table of docs/design.md §7.

    mode     walls in the gap (spring)                 walls of the repeated hour (autumn)
    cron     once, at the first instant after the gap  the first time
    shift    moved forward by the length of the gap    the first time
    skip     do not run                                the first time
    both     as cron                                   both times
    real     do not run: they never come               both times: real time repeats them

`cron` and `real` are the two halves of Debian cron's rule (cron(8), "daylight saving time"): jobs at fixed hours run
once, jobs whose minute or hour starts with `*` follow real time. A schedule that follows real time does so whatever
its `dst` says: moving or dropping the ticks of "every five minutes" would leave holes or pile them up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

from duly.core.schedule.days import Days, DaysOff
from duly.core.schedule.zones import DAY_SECONDS, LAST_SECOND, Stretch, Zone

Dst = Literal["cron", "shift", "skip", "both"]
Mode = Literal["cron", "shift", "skip", "both", "real"]

_NEAR = 2 * DAY_SECONDS  # more than any change of offset: what lies further apart in local time does so in UTC


@dataclass(frozen=True, slots=True)
class Times:
    """Times of day: every combination of these hours, minutes and seconds, each sorted and not empty."""

    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]

    def first(self) -> int:
        """The earliest, in seconds after midnight."""
        return self.hours[0] * 3600 + self.minutes[0] * 60 + self.seconds[0]

    def last(self) -> int:
        """The latest, in seconds after midnight."""
        return self.hours[-1] * 3600 + self.minutes[-1] * 60 + self.seconds[-1]

    def on_or_after(self, time: int) -> int | None:
        """The earliest that is not before `time` (seconds after midnight)."""
        hours, minutes, seconds = self.hours, self.minutes, self.seconds
        hour, rest = divmod(time, 3600)
        minute, second = divmod(rest, 60)
        at_hour = bisect_left(hours, hour)
        if at_hour < len(hours) and hours[at_hour] == hour:
            at_minute = bisect_left(minutes, minute)
            if at_minute < len(minutes) and minutes[at_minute] == minute:
                at_second = bisect_left(seconds, second)
                if at_second < len(seconds):
                    return hour * 3600 + minute * 60 + seconds[at_second]
                at_minute += 1
            if at_minute < len(minutes):
                return hour * 3600 + minutes[at_minute] * 60 + seconds[0]
            at_hour += 1
        if at_hour < len(hours):
            return hours[at_hour] * 3600 + minutes[0] * 60 + seconds[0]
        return None

    def on_or_before(self, time: int) -> int | None:
        """The latest that is not after `time` (seconds after midnight)."""
        hours, minutes, seconds = self.hours, self.minutes, self.seconds
        hour, rest = divmod(time, 3600)
        minute, second = divmod(rest, 60)
        at_hour = bisect_right(hours, hour) - 1
        if at_hour >= 0 and hours[at_hour] == hour:
            at_minute = bisect_right(minutes, minute) - 1
            if at_minute >= 0 and minutes[at_minute] == minute:
                at_second = bisect_right(seconds, second) - 1
                if at_second >= 0:
                    return hour * 3600 + minute * 60 + seconds[at_second]
                at_minute -= 1
            if at_minute >= 0:
                return hour * 3600 + minutes[at_minute] * 60 + seconds[-1]
            at_hour -= 1
        if at_hour >= 0:
            return hours[at_hour] * 3600 + minutes[-1] * 60 + seconds[-1]
        return None


@dataclass(frozen=True, slots=True)
class Pattern:
    """Wall times: these days at these times of day, from `first` to `last` (seconds on the wall clock since 1970)."""

    days: Days
    times: Times
    first: int = -(1 << 62)
    last: int = 1 << 62

    def on_or_after(self, wall: int) -> int | None:
        """The earliest wall time that is not before `wall`."""
        wall = max(wall, self.first)
        if wall > self.last:
            return None
        day, time = divmod(wall, DAY_SECONDS)
        found = self.days.on_or_after(day, self.last // DAY_SECONDS)
        if found == day:
            same_day = self.times.on_or_after(time)
            if same_day is not None:
                answer = day * DAY_SECONDS + same_day
                return answer if answer <= self.last else None
            found = self.days.on_or_after(day + 1, self.last // DAY_SECONDS)
        if found is None:
            return None
        answer = found * DAY_SECONDS + self.times.first()
        return answer if answer <= self.last else None

    def on_or_before(self, wall: int) -> int | None:
        """The latest wall time that is not after `wall`."""
        wall = min(wall, self.last)
        if wall < self.first:
            return None
        day, time = divmod(wall, DAY_SECONDS)
        found = self.days.on_or_before(day, self.first // DAY_SECONDS)
        if found == day:
            same_day = self.times.on_or_before(time)
            if same_day is not None:
                answer = day * DAY_SECONDS + same_day
                return answer if answer >= self.first else None
            found = self.days.on_or_before(day - 1, self.first // DAY_SECONDS)
        if found is None:
            return None
        answer = found * DAY_SECONDS + self.times.last()
        return answer if answer >= self.first else None


@dataclass(frozen=True, slots=True)
class LocalRule:
    """A pattern on the wall clock of a zone, as seconds of UTC."""

    pattern: Pattern
    zone: Zone
    mode: Mode
    off: DaysOff | None = None  # already taken out of the pattern; here it only stops moves onto a day off

    def after(self, second: int) -> int | None:
        """The first occurrence later than `second`.

        Stretch by stretch: within one, an occurrence is a wall time minus the offset; its start adds what was moved.
        """
        low = max(second + 1, 0)
        while low <= LAST_SECOND:
            stretch = self.zone.stretch(low)
            begin = low + stretch.offset
            if self.mode not in ("both", "real"):
                begin = max(begin, stretch.start + stretch.before)  # earlier walls had their time before the change
            wall = self.pattern.on_or_after(begin)
            found = None
            if wall is not None and wall - stretch.offset < stretch.end:
                found = wall - stretch.offset
            if stretch.before < stretch.offset:
                moved = self._moved_from(stretch, low)
                if moved is not None and (found is None or moved < found):
                    found = moved
            if found is not None:
                return found if found <= LAST_SECOND else None
            if stretch.end - low <= _NEAR:
                low = stretch.end  # the clock may be set back there, and walls before `begin` come again
            elif wall is None:
                return None
            else:
                low = max(stretch.end, wall - stretch.offset - _NEAR)
        return None

    def until(self, second: int) -> int | None:
        """The last occurrence that is not later than `second`."""
        high = min(second, LAST_SECOND)
        while high >= 0:
            stretch = self.zone.stretch(high)
            wall = self.pattern.on_or_before(high + stretch.offset)
            found = None
            if wall is not None:
                begin = stretch.start + stretch.offset
                if self.mode not in ("both", "real"):
                    begin = max(begin, stretch.start + stretch.before)
                if wall >= begin:
                    found = wall - stretch.offset
            if stretch.before < stretch.offset:
                moved = self._moved_until(stretch, high)
                if moved is not None and (found is None or moved > found):
                    found = moved
            if found is not None:
                return found if found >= 0 else None
            if high - stretch.start <= _NEAR:
                high = stretch.start - 1  # the clock may have been set back there, and later walls come before it
            elif wall is None:
                return None
            else:
                high = min(stretch.start - 1, wall - stretch.offset + _NEAR)
        return None

    def _moved_from(self, stretch: Stretch, low: int) -> int | None:
        """The first instant from `low` on to which a wall time in the gap at the stretch's start was moved."""
        gap, end = stretch.start + stretch.before, stretch.start + stretch.offset
        if self.mode in ("cron", "both"):
            if low > stretch.start or self._is_off(stretch.start + stretch.offset):
                return None
            wall = self.pattern.on_or_after(gap)
            return stretch.start if wall is not None and wall < end else None
        if self.mode == "shift":
            wall = self.pattern.on_or_after(max(gap, low + stretch.before))
            while wall is not None and wall < end:
                at = wall - stretch.before
                if not self._is_off(at + stretch.offset):
                    return at
                midnight = ((at + stretch.offset) // DAY_SECONDS + 1) * DAY_SECONDS
                wall = self.pattern.on_or_after(midnight - stretch.offset + stretch.before)
        return None

    def _moved_until(self, stretch: Stretch, high: int) -> int | None:
        """The last instant up to `high` to which a wall time in the gap at the stretch's start was moved."""
        gap, end = stretch.start + stretch.before, stretch.start + stretch.offset
        if self.mode in ("cron", "both"):
            return self._moved_from(stretch, stretch.start)
        if self.mode == "shift":
            wall = self.pattern.on_or_before(min(end - 1, high + stretch.before))
            while wall is not None and wall >= gap:
                at = wall - stretch.before
                if not self._is_off(at + stretch.offset):
                    return at
                midnight = (at + stretch.offset) // DAY_SECONDS * DAY_SECONDS
                wall = self.pattern.on_or_before(midnight - 1 - stretch.offset + stretch.before)
        return None

    def _is_off(self, wall: int) -> bool:
        return self.off is not None and self.off.covers(wall // DAY_SECONDS)

    def note(self, second: int) -> tuple[bool, str]:
        """(moved by a clock change, a sentence about the clock change if one matters here)."""
        stretch = self.zone.stretch(second)
        wall = second + stretch.offset
        if self.pattern.on_or_after(wall) == wall:
            return change_note(self.zone, wall, second)
        gap = stretch.start + stretch.before
        nominal = self.pattern.on_or_after(gap if self.mode != "shift" else second + stretch.before)
        return change_note(self.zone, gap if nominal is None else nominal, second)


def change_note(zone: Zone, named: int, second: int) -> tuple[bool, str]:
    """(moved by a clock change, a sentence about it) of what a schedule names by this wall time and runs at `second`.

    No sentence where no clock change matters.
    """
    stretch = zone.stretch(second)
    wall = second + stretch.offset
    if wall != named:
        gap, end = stretch.start + stretch.before, stretch.start + stretch.offset
        return True, f"moved from {clock(named)}: the clock jumps from {clock(gap)} to {clock(end)}"
    if stretch.before > stretch.offset and wall < stretch.start + stretch.before:
        return False, f"the second {clock(wall)} of the day: the clock was set back"
    following = zone.stretch(stretch.end)
    if following.before > following.offset and wall >= following.start + following.offset:
        return False, f"the first {clock(wall)} of the day: the clock will be set back"
    return False, ""


def clock(wall: int) -> str:
    """`02:30`, or `02:30:15` when the seconds matter."""
    minutes, second = divmod(wall % DAY_SECONDS, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}" + (f":{second:02}" if second else "")
