"""Instants and durations as text. Inside duly both are integer microseconds; an instant counts from 1970 in UTC.

    instant    2026-12-01T01:00:00.000000Z    on the wire (RFC 3339)
               20261201T010000.000000Z        in run ids: sorts as text, needs no escaping in a URL
    duration   500ms   30s   1h30m   2d   1w  or ISO 8601: PT1H30M, P2D

Bare numbers are refused: `30` leaves the reader to guess the unit.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from duly.core.errors import InvalidInput

MICROSECOND = 1
MILLISECOND = 1_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY

MAX_INSTANT = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
MAX_DURATION = 36_525 * DAY  # a hundred years

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - formatting adds the Z itself; an aware value costs twice the time
_TICK = timedelta(microseconds=1)

_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_COMPACT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})\.([0-9]{6})Z")

_UNITS = {"w": WEEK, "d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND, "ms": MILLISECOND, "us": MICROSECOND}
_PART = re.compile(r"([0-9]{1,18})([a-zA-Z]*)")
_ISO_DURATION = re.compile(
    r"P(?:([0-9]{1,9})W)?(?:([0-9]{1,9})D)?"
    r"(T(?=[0-9])(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9})(?:\.([0-9]{1,6}))?S)?)?"
)
_LONGEST_TEXT = 64


def format_instant(us: int) -> str:
    """RFC 3339 in UTC with six decimals: `2026-12-01T01:00:00.000000Z`."""
    return (_NAIVE_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds") + "Z"


def parse_instant(text: str, *, pointer: str = "") -> int:
    """RFC 3339 with any offset → microseconds; digits past the sixth decimal are dropped.

    Raises InvalidInput at `pointer` for anything else: a time without offset, years outside 1970 to 9999,
    times that no calendar has.
    """
    match = _INSTANT.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise _invalid(pointer, f"not an RFC 3339 time: {_quoted(text)}; write it like 2026-12-01T09:00:00Z")
    day, time, fraction, offset = match.groups()
    if offset is None:
        raise _invalid(
            pointer, f"the time {_quoted(text)} has no offset; add Z or one like +01:00 to say which instant is meant"
        )
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{(fraction or '')[:7]}{offset.upper()}")
    except ValueError as error:
        raise _invalid(pointer, f"there is no such time as {_quoted(text)}: {error}") from None
    us = (moment - _EPOCH) // _TICK
    if not 0 <= us <= MAX_INSTANT:
        raise _invalid(pointer, f"{_quoted(text)} is outside the years 1970 to 9999 (UTC)")
    return us


def compact_instant(us: int) -> str:
    """The form in run ids: `20261201T010000.000000Z`."""
    text = (_NAIVE_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds")
    return text.replace("-", "").replace(":", "") + "Z"


def parse_compact_instant(text: str, *, pointer: str = "") -> int:
    """`20261201T010000.000000Z` → microseconds. Raises InvalidInput at `pointer` for anything else."""
    match = _COMPACT.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise _invalid(pointer, f"not a compact time: {_quoted(text)}; write it like 20261201T010000.000000Z")
    try:
        year, month, day, hour, minute, second, fraction = map(int, match.groups())
        moment = datetime(year, month, day, hour, minute, second, fraction, UTC)
    except ValueError as error:
        raise _invalid(pointer, f"there is no such time as {_quoted(text)}: {error}") from None
    us = (moment - _EPOCH) // _TICK
    if us < 0:
        raise _invalid(pointer, f"{_quoted(text)} is outside the years 1970 to 9999 (UTC)")
    return us


def parse_duration(text: str, *, pointer: str = "") -> int:
    """`500ms`, `30s`, `1h30m`, `2d`, `1w`, `250us`, or ISO 8601 `PT1H30M`, `P2D` → microseconds, 0 to 100 years.

    A day is 24 hours and a week 7 days. Raises InvalidInput at `pointer` with what to write instead.
    """
    if len(text) > _LONGEST_TEXT:
        raise _invalid(pointer, f"a duration has at most {_LONGEST_TEXT} characters, like 1h30m")
    us = _iso_duration(text, pointer) if text[:1] in ("P", "p") else _short_duration(text, pointer)
    if us > MAX_DURATION:
        raise _invalid(pointer, f"{_quoted(text)} is longer than 100 years")
    return us


def format_duration(us: int) -> str:
    """The shortest text that parse_duration reads back: `1h30m`, `0s`, `1w`, `10d`; weeks only when whole."""
    if us < 0:
        return "-" + format_duration(-us)
    if us == 0:
        return "0s"
    if us % WEEK == 0:
        return f"{us // WEEK}w"
    parts: list[str] = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, us = divmod(us, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def _short_duration(text: str, pointer: str) -> int:
    total, position, smallest = 0, 0, WEEK + 1
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise _invalid(pointer, f"not a duration: {_quoted(text)}; write it like 500ms, 30s, 1h30m or 2d")
        number, unit = match.groups()
        if not unit and text[match.end() :].startswith("."):
            raise _invalid(pointer, f"{_quoted(text)} has a fraction; use a smaller unit, as 1h30m for 1.5h")
        if not unit:
            raise _invalid(pointer, f"{_quoted(text)} lacks a unit: say {number}s, {number}m or {number}h")
        size = _UNITS.get(unit)
        if size is None:
            raise _invalid(
                pointer, f"{_quoted(unit)} is not a unit of duration; the units are w, d, h, m, s, ms and us"
            )
        if size >= smallest:
            raise _invalid(pointer, f"the units in {_quoted(text)} must go from large to small, each once, as in 1h30m")
        total += int(number) * size
        smallest = size
        position = match.end()
    if position == 0:
        raise _invalid(pointer, "an empty duration; write it like 500ms, 30s, 1h30m or 2d")
    return total


def _iso_duration(text: str, pointer: str) -> int:
    match = _ISO_DURATION.fullmatch(text.upper()) if text.isascii() else None
    if match is None or len(text) < 3:
        raise _invalid(
            pointer,
            f"not an ISO 8601 duration of weeks, days, hours, minutes and seconds: {_quoted(text)}; "
            "write it like PT1H30M or P2D (months and years have no fixed length)",
        )
    weeks, days, _, hours, minutes, seconds, fraction = match.groups()
    counts = ((weeks, WEEK), (days, DAY), (hours, HOUR), (minutes, MINUTE), (seconds, SECOND))
    return sum(int(count or 0) * size for count, size in counts) + int((fraction or "").ljust(6, "0"))


def _invalid(pointer: str, detail: str) -> InvalidInput:
    """Without a pointer the sentence stands alone: the caller knows which field it read."""
    return InvalidInput.at(pointer, detail) if pointer else InvalidInput(detail)


def _quoted(text: str) -> str:
    shown = text if len(text) <= 40 else text[:37] + "..."
    return repr(shown)
