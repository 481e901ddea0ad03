"""Cursors: a position in an order, as text that clients hand back. Every store speaks the same ones.

    runs              (scheduled_at, job_id)
    jobs by creation  (id,)
    jobs by name      (name, id)
    versions          (number,)

A page holds what lies strictly beyond its cursor, so that it stays right while rows come and go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

import msgspec

from duly.core.errors import Malformed

MAX_PAGE: Final = 1_000
_LONGEST: Final = 4_096

RunPosition = tuple[int, str]
JobPosition = tuple[str, ...]
P = TypeVar("P", RunPosition, JobPosition)
T = TypeVar("T")


class _RunCursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="run"):
    scheduled_at: int
    job_id: str


class _IdCursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="created"):
    id: str


class _NameCursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="name"):
    name: str
    id: str


class _VersionCursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="version"):
    number: int


_Cursor = _RunCursor | _IdCursor | _NameCursor | _VersionCursor
_decoder: msgspec.json.Decoder[_Cursor] = msgspec.json.Decoder(_Cursor)


def page_limit(limit: int) -> int:
    """The limit that is kept to: 1 to 1,000."""
    return max(1, min(limit, MAX_PAGE))


def run_cursor(position: RunPosition) -> str:
    """The cursor of a position among runs."""
    return _text(_RunCursor(*position))


def run_position(cursor: str) -> RunPosition:
    """The position among runs that a cursor names. Raises Malformed."""
    value = _value(cursor)
    if not isinstance(value, _RunCursor) or not -(2**63) <= value.scheduled_at < 2**63:
        raise Malformed("the cursor is not one of runs")
    return (value.scheduled_at, value.job_id)


def job_cursor(position: JobPosition) -> str:
    """The cursor of a position among jobs: (id,) or (name, id)."""
    return _text(_IdCursor(*position) if len(position) == 1 else _NameCursor(*position))


def job_position(cursor: str, *, by_name: bool) -> JobPosition:
    """The position among jobs that a cursor names, in the order that it was made for. Raises Malformed."""
    value = _value(cursor)
    if by_name and isinstance(value, _NameCursor):
        return (value.name, value.id)
    if not by_name and isinstance(value, _IdCursor):
        return (value.id,)
    raise Malformed("the cursor is not one of jobs in this order")


def version_cursor(number: int) -> str:
    """The cursor of a position among the versions of a job, newest first."""
    return _text(_VersionCursor(number))


def version_position(cursor: str) -> int:
    """The version that a cursor names. Raises Malformed."""
    value = _value(cursor)
    if not isinstance(value, _VersionCursor) or not 0 <= value.number < 2**63:
        raise Malformed("the cursor is not one of versions")
    return value.number


def _text(value: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def _value(cursor: str) -> _Cursor:
    if len(cursor) > _LONGEST:
        raise Malformed("the cursor is too long")
    try:
        return _decoder.decode(
            base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        )
    except (binascii.Error, msgspec.MsgspecError, UnicodeError) as problem:
        raise Malformed(f"the cursor cannot be read: {problem}") from problem


# -- merging ------------------------------------------------------------------------------------------------


def merge(
    found: Iterable[tuple[P, T]], reaches: Collection[P], limit: int, *, descending: bool
) -> tuple[list[T], P | None]:
    """The page from what several sources found, each item with its position, and the position of the next cursor.

    `reaches` say how far those sources have looked that may have more. What lies beyond the nearest is left for the
    next page, so that no item is shown before one of another source that ought to come first.
    """
    page = sorted(found, key=_position, reverse=descending)
    nearest: P | None = None
    if reaches:
        nearest = max(reaches) if descending else min(reaches)
        page = [row for row in page if (row[0] >= nearest if descending else row[0] <= nearest)]
    if len(page) > limit:
        return [item for _, item in page[:limit]], page[limit - 1][0]
    return [item for _, item in page], nearest


def _position(row: tuple[P, T]) -> P:
    return row[0]
