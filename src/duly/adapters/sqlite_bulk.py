"""Statements over many rows in one step.

APSW gives the GIL up for every step of a statement and has to win it back, and so does the writer for each row of an
`executemany` while the event loop is busy: with a switch interval of 0.2 ms a row then costs 0.1 ms in place of 6 µs,
and the two threads take turns. One step over 512 rows costs one such wait, and the second core works meanwhile.

`{rows}` in a statement stands for the rows: `(?,?,?),(?,?,?),…`. Batches are cut into powers of two, so that a
statement has ten forms, which are prepared once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import apsw

from duly.adapters.sql import statements

SQL: Final = statements("sqlite")
MOST: Final = 512  # rows of a step; APSW keeps prepared statements of up to 16 KiB


@cache
def form(name: str, width: int, count: int) -> str:
    """The text of a named statement for `count` rows of `width` columns."""
    row = f"({','.join('?' * width)})"
    return SQL[name].replace("{rows}", ",".join([row] * count))


def _parts(name: str, rows: Sequence[tuple[Any, ...]], first: tuple[Any, ...]) -> Iterator[tuple[str, list[Any]]]:
    """The statements that carry rows out, each with its parameters."""
    at = 0
    while at < len(rows):
        count = min(MOST, 1 << (len(rows) - at).bit_length() - 1)
        yield form(name, len(rows[0]), count), [*first, *chain.from_iterable(rows[at : at + count])]
        at += count


def in_bulk(db: apsw.Connection, name: str, rows: Sequence[tuple[Any, ...]], *first: Any) -> int:
    """Run a named statement over rows, with the parameters `first` before them; returns how many rows it changed."""
    before = db.total_changes()
    for sql, parameters in _parts(name, rows, first):
        db.execute(sql, parameters)
    return db.total_changes() - before


def looked_up(db: apsw.Connection, name: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What a named query finds for rows."""
    return [found for sql, parameters in _parts(name, rows, ()) for found in db.execute(sql, parameters)]
