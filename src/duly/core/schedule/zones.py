"""Time zones as stretches of constant offset: what every rule about clock changes is told in.

    UTC    ──────stretch──────┤ start ├──────stretch──────    whole seconds since 1970
    local     utc + before            │     utc + offset      whole seconds on the wall clock

At `start` the clock jumps from `before` to `offset`. Forward: the walls from start + before to start + offset do
not exist (the *gap*). Backward: the walls from start + offset to start + before come a second time (the *repeat*).

This is the only module that reads tz data (IANA, through zoneinfo).
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import NamedTuple
from zoneinfo import ZoneInfo

from duly.core.errors import InvalidInput

EPOCH = datetime(1970, 1, 1)
UTC_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_SECONDS = 86_400

LAST_SECOND = (
    253_402_128_000  # 9999-12-30T00:00:00Z: a day to spare, so that every local time has a year of four digits
)

_CHUNK = 1 << 24  # 194 days: the unit in which stretches are found and remembered
_PROBE = 5 * DAY_SECONDS  # no zone has changed its offset twice within 6.9 days since 1970 (measured on tzdata 2026.6)
_MARGIN = 2 * DAY_SECONDS  # no change is larger than a day (Samoa and Kwajalein skipped or repeated one)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+\-/]{0,63}")


class Stretch(NamedTuple):
    """Constant offset from `start` up to, not including, `end` (seconds UTC); `before` ruled just before `start`.

    Stretches may also end where memory's chunks do; then `before` equals `offset` and nothing changes at `start`.
    """

    start: int
    end: int
    offset: int
    before: int


class Zone:
    """One IANA zone. Compared by name."""

    __slots__ = ("fixed", "info", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.info = ZoneInfo(name)
        self.fixed = Stretch(-(1 << 62), 1 << 62, 0, 0) if name in ("UTC", "Etc/UTC") else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Zone) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def offset(self, second: int) -> int:
        """Seconds east of UTC at this second of UTC."""
        within = min(second, LAST_SECOND + DAY_SECONDS)
        return _seconds((UTC_EPOCH + timedelta(seconds=within)).astimezone(self.info).utcoffset())

    def stretch(self, second: int) -> Stretch:
        """The stretch that holds this second of UTC."""
        if self.fixed is not None:
            return self.fixed
        starts, stretches = _stretches(self, second // _CHUNK)
        return stretches[bisect_right(starts, second) - 1]

    def first_instant(self, wall: int) -> tuple[int, int, bool]:
        """(second of UTC, length of the gap, whether repeated) of one wall time.

        In a gap the second is that of its end, and the length is more than 0. A repeated wall gives its first time.
        """
        naive = EPOCH + timedelta(seconds=wall)
        early = _seconds(naive.replace(tzinfo=self.info, fold=0).utcoffset())
        late = _seconds(naive.replace(tzinfo=self.info, fold=1).utcoffset())
        if early == late:
            return wall - early, 0, False
        if early > late:
            return wall - early, 0, True
        return self.stretch(wall - early).start, late - early, False

    def local(self, second: int) -> datetime:
        """The aware local time of a second of UTC, for people."""
        return (UTC_EPOCH + timedelta(seconds=second)).astimezone(self.info)


@lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """The zone of an IANA name. Raises InvalidInput at /timezone, with the closest known name."""
    if _NAME.fullmatch(name) and ".." not in name:
        try:
            return Zone(name)
        except (KeyError, ValueError, OSError):
            pass
    shown = name if len(name) <= 64 else name[:61] + "..."
    raise InvalidInput.at("/timezone", f"unknown time zone {shown!r}; {_suggestion(name)}")


def _suggestion(name: str) -> str:
    known = _known_names()
    folded = name[:64].casefold().replace(" ", "_")
    exact = known.get(folded)
    by_city = [full for low, full in known.items() if low.rpartition("/")[2] == folded]
    close = [exact] if exact else by_city or [known[low] for low in difflib.get_close_matches(folded, known, 1)]
    if close:
        return f"did you mean {close[0]}?"
    return "use an IANA name such as Europe/Berlin or UTC"


@lru_cache(maxsize=1)
def _known_names() -> dict[str, str]:
    text = resources.files("tzdata").joinpath("zones").read_text(encoding="ascii")
    return {line.casefold(): line for line in text.split()}


@lru_cache(maxsize=4096)
def _stretches(zone: Zone, chunk: int) -> tuple[list[int], list[Stretch]]:
    """The stretches that touch a chunk. The first begins a margin early, so that what a change did is still seen."""
    at, end = chunk * _CHUNK - _MARGIN, (chunk + 1) * _CHUNK
    offset = before = zone.offset(at)
    start = at
    found: list[Stretch] = []
    while at < end:
        probe = min(at + _PROBE, end)
        if zone.offset(probe) != offset:
            change = _change(zone, at, probe, offset)
            if change >= end:
                break
            found.append(Stretch(start, change, offset, before))
            start, before, offset = change, offset, zone.offset(change)
            probe = change
        at = probe
    found.append(Stretch(start, end, offset, before))
    return [stretch.start for stretch in found], found


def _change(zone: Zone, low: int, high: int, offset: int) -> int:
    """The first second in (low, high] with another offset."""
    while high - low > 1:
        middle = (low + high) // 2
        if zone.offset(middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _seconds(offset: timedelta | None) -> int:
    return 0 if offset is None else offset.days * DAY_SECONDS + offset.seconds
