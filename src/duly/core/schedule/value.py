"""A schedule as an immutable value: when it fires next, when it fired last, what it says in English."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from duly.core.instants import SECOND
from duly.core.schedule.elapsed import Delay, Once, Rate, WorkingDays
from duly.core.schedule.local_rule import Dst, LocalRule, change_note
from duly.core.schedule.zones import Zone

Kind = Literal["once", "rate", "delay", "cron", "rrule", "repeat"]


class Occurrence(msgspec.Struct, frozen=True):
    """One time at which a schedule fires.

    `at`: microseconds UTC. `local`: RFC 3339 in the schedule's zone, with its offset. `moved_by_dst`: the clock
    change put it at another wall time than the schedule names. `note`: a sentence about the clock change, or "".
    """

    at: int
    local: str
    moved_by_dst: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What parse_schedule returns. Equal when made from the same text and options.

    Instants are integer microseconds UTC. Occurrences before 1970 or after 9998 do not exist.
    """

    kind: Kind
    text: str
    timezone: str
    dst: Dst
    start: int | None
    end: int | None
    calendar: tuple[str, ...]
    anchor: int
    seed: str
    _rule: Once | Delay | Rate | LocalRule = field(compare=False, repr=False)
    _zone: Zone = field(compare=False, repr=False)
    _first: int = field(compare=False, repr=False)  # inclusive bounds: start and end, and the rule's own
    _last: int = field(compare=False, repr=False)
    _working: WorkingDays | None = field(compare=False, repr=False)
    _sentence: Callable[[], str] = field(compare=False, repr=False)  # made when asked for: most schedules never are

    def next_after(self, instant: int) -> int | None:
        """The first occurrence later than `instant`; None when there is none. For a delay: its first run, if later."""
        instant = max(instant, self._first - 1)
        rule = self._rule
        if isinstance(rule, LocalRule):
            second = rule.after(instant // SECOND)
            at = None if second is None else second * SECOND
        elif isinstance(rule, Rate) and self._working is not None:
            at = self._working.after(rule, instant)
        else:
            at = rule.after(instant)
        return at if at is not None and at <= self._last else None

    def latest_until(self, instant: int) -> int | None:
        """The last occurrence that is not later than `instant`; None when there is none."""
        instant = min(instant, self._last)
        rule = self._rule
        if isinstance(rule, LocalRule):
            second = rule.until(instant // SECOND)
            at = None if second is None else second * SECOND
        elif isinstance(rule, Rate) and self._working is not None:
            at = self._working.until(rule, instant)
        else:
            at = rule.until(instant)
        return at if at is not None and at >= self._first else None

    def between(self, after: int, until: int, limit: int) -> list[int]:
        """The occurrences in (after, until], oldest first, at most `limit`."""
        found: list[int] = []
        at = self.next_after(after)
        while at is not None and at <= until and len(found) < limit:
            found.append(at)
            at = self.next_after(at)
        return found

    def count_between(self, after: int, until: int) -> int | None:
        """How many occurrences lie in (after, until], where arithmetic tells (once, rate, repeat); else None."""
        after, until = max(after, self._first - 1), min(until, self._last)
        if isinstance(self._rule, Once):
            return int(after < self._rule.at <= until)
        if isinstance(self._rule, Rate) and self._working is None:
            return self._rule.count(after, until)
        return None

    def after_completion(self, finished_at: int) -> int | None:
        """For a delay: when the next run is due after one that finished then, None past `end`. None for other kinds.

        A run that would fall on a day off waits for the beginning of the next working day.
        """
        if not isinstance(self._rule, Delay):
            return None
        at: int | None = max(finished_at + self._rule.delay, self._rule.first)
        if at is not None and self._working is not None:
            at = self._working.next_start(at)
        return at if at is not None and at <= self._last else None

    def describe(self) -> str:
        """An English sentence."""
        return self._sentence()

    def occurrence(self, at: int) -> Occurrence:
        """An instant that this schedule gave, for people."""
        local = self._zone.local(at // SECOND).replace(microsecond=at % SECOND).isoformat()
        moved, note = False, ""
        if isinstance(self._rule, LocalRule):
            moved, note = self._rule.note(at // SECOND)
        elif isinstance(self._rule, Once) and self._rule.wall is not None:
            moved, note = change_note(self._zone, self._rule.wall, at // SECOND)
        return Occurrence(at, local, moved, note)


def preview(schedule: Schedule, after: int, count: int) -> list[Occurrence]:
    """The next `count` occurrences later than `after` (microseconds UTC), fewer when the schedule ends."""
    found: list[Occurrence] = []
    at = schedule.next_after(after)
    while at is not None and len(found) < count:
        found.append(schedule.occurrence(at))
        at = schedule.next_after(at)
    return found
