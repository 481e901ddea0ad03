"""Schedule strings → values: the whole grammar of docs/design.md §7.

now · in 5m · at 2026-12-01T09:00 · 2026-12-01T09:00:00Z       once
every 15m · every 15m from 09:00                               fixed rate
after 15m                                                      fixed delay from completion
0 2 * * * · */10 * * * * * · @daily · H H * * *                cron
RRULE:FREQ=MONTHLY;BYDAY=1MO                                   iCalendar (RFC 5545)
R12/2026-01-01T00:00:00Z/PT1H                                  repeat (ISO 8601)
"""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

from duly.core.errors import InvalidInput, ScheduleError
from duly.core.instants import MAX_INSTANT, format_instant
from duly.core.schedule.days import parse_days_off
from duly.core.schedule.forms import EXAMPLE, Form, Options
from duly.core.schedule.local_rule import Dst
from duly.core.schedule.value import Schedule
from duly.core.schedule.zones import zone

LONGEST_TEXT = 1000

_RELATIVE = ("now", "in ", "after ", "rrule", "freq", "dtstart")  # what the anchor has a say in


def parse_schedule(
    text: str,
    *,
    timezone: str = "UTC",
    dst: Dst = "cron",
    anchor: int,
    seed: str = "",
    start: int | None = None,
    end: int | None = None,
    calendar: tuple[str, ...] = (),
) -> Schedule:
    """The schedule that `text` describes. Remembered: asking again for the same costs a dictionary look-up.

    `timezone` is an IANA name. `anchor` is the instant from which `now`, `in 5m`, `after 5m` and an RRULE without
    DTSTART count: when the job was made or its schedule last changed. `seed` spreads `H`: the job's id. `start` and
    `end` bound the occurrences, both inclusive; instants are microseconds UTC. `calendar` lists days off.

    Raises ScheduleError at /schedule with position, reason and example; InvalidInput at /timezone, /dst, /calendar/n,
    /start or /end. What could never fire is refused, too.
    """
    if len(text) > LONGEST_TEXT:
        raise ScheduleError(f"a schedule has at most {LONGEST_TEXT} characters", position=LONGEST_TEXT, example=EXAMPLE)
    # Schedules that do not use the anchor or the seed are shared by all jobs that have them.
    lowered = text.strip().lower()
    if not lowered.startswith(_RELATIVE):
        anchor = 0
    if "h" not in lowered:
        seed = ""
    return _parse(text, timezone, dst, anchor, seed, start, end, tuple(calendar))


@lru_cache(maxsize=4096)
def _parse(
    text: str,
    timezone: str,
    dst: Dst,
    anchor: int,
    seed: str,
    start: int | None,
    end: int | None,
    calendar: tuple[str, ...],
) -> Schedule:
    if dst not in get_args(Dst):
        raise InvalidInput.at("/dst", f"{str(dst)[:20]!r} is not one of {', '.join(get_args(Dst))}")
    for pointer, bound in (("/start", start), ("/end", end), ("/schedule", anchor)):
        if bound is not None and not 0 <= bound <= MAX_INSTANT:
            raise InvalidInput.at(pointer, "outside the years 1970 to 9999")
    if start is not None and end is not None and end < start:
        raise InvalidInput.at("/end", f"ends at {format_instant(end)}, before it starts at {format_instant(start)}")
    options = Options(zone(timezone), dst, anchor, seed, start, end, calendar, parse_days_off(calendar))
    return Form(text, options).parse()
