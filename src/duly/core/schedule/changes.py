"""The days on which clocks change, and what a schedule does on them in each mode: what people compare before they
choose one."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, get_args

import msgspec

from duly.core.instants import DAY, SECOND
from duly.core.schedule.local_rule import Dst
from duly.core.schedule.parse import parse_schedule
from duly.core.schedule.value import Occurrence
from duly.core.schedule.zones import UTC_EPOCH, zone

MODES: Final[tuple[Dst, ...]] = get_args(Dst)
_AHEAD: Final = 400 * DAY
_SHOWN: Final = 30


class ChangeDay(msgspec.Struct, frozen=True):
    """One local day: `at` (µs UTC) the clock goes from one offset to the other (seconds east of UTC)."""

    day: str
    at: int
    before: int
    after: int
    modes: dict[str, list[Occurrence]]  # at most 30 of the day each


def change_days(
    text: str, *, timezone: str, after: int, seed: str = "", calendar: tuple[str, ...] = (), most: int = 2
) -> list[ChangeDay]:
    """The next clock changes of the zone within 400 days, with what the schedule does on their days.

    Empty for a zone without changes, and for a schedule that does the same in every mode. Raises InvalidInput.
    """
    place = zone(timezone)
    found: list[ChangeDay] = []
    at = after // SECOND
    while len(found) < most:
        stretch = place.stretch(at)
        at = stretch.end
        if at * SECOND > after + _AHEAD:
            break
        following = place.stretch(at)
        if following.before == following.offset:
            continue
        local = UTC_EPOCH + timedelta(seconds=at + following.before)
        midnight = int((local.replace(hour=0, minute=0, second=0) - UTC_EPOCH).total_seconds()) - following.before
        start = midnight * SECOND
        end = start + DAY - (following.offset - following.before) * SECOND
        modes: dict[str, list[Occurrence]] = {}
        for mode in MODES:
            schedule = parse_schedule(
                text, timezone=timezone, dst=mode, anchor=after, seed=seed, start=None, end=None, calendar=calendar
            )
            modes[mode] = [schedule.occurrence(each) for each in schedule.between(start - 1, end - 1, _SHOWN)]
        found.append(ChangeDay(local.date().isoformat(), at * SECOND, following.before, following.offset, modes))
    if all(len({tuple(times) for times in map(_instants, day.modes.values())}) == 1 for day in found):
        return []
    return found


def _instants(occurrences: list[Occurrence]) -> list[int]:
    return [occurrence.at for occurrence in occurrences]
