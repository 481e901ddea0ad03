"""Statements over many rows: every number of rows is carried out whole, in few steps."""

from __future__ import annotations

import apsw
import pytest

from duly.adapters import sqlite_bulk
from duly.adapters.sqlite_bulk import MOST, in_bulk


@pytest.fixture
def db() -> apsw.Connection:
    """A database with the table of tallies."""
    connection = apsw.Connection(":memory:")
    connection.execute("create table tally(name text primary key, n integer not null)")
    return connection


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 300, MOST - 1, MOST, MOST + 1, 3 * MOST + 5])
def test_every_row_is_written_once(db: apsw.Connection, count: int) -> None:
    """Whatever the batch is cut into."""
    changed = in_bulk(db, "add_to_tally", [(f"n{i}", i) for i in range(count)])
    assert changed == count
    assert db.execute("select count(*), coalesce(sum(n), 0) from tally").get == (count, sum(range(count)))


def test_a_batch_takes_few_steps(db: apsw.Connection) -> None:
    """A statement for each power of two in its size, and one for each full step."""
    asked: list[int] = []
    db.set_exec_trace(lambda _cursor, _sql, bindings: asked.append(len(bindings) // 2) or True)
    in_bulk(db, "add_to_tally", [(f"n{i}", 1) for i in range(2 * MOST + 300)])
    assert asked == [MOST, MOST, 256, 32, 8, 4]


def test_first_parameters_come_before_the_rows(monkeypatch: pytest.MonkeyPatch, db: apsw.Connection) -> None:
    """As in `update … set n = ? where name in (values …)`; what does not match is not counted."""
    in_bulk(db, "add_to_tally", [(f"n{i}", 0) for i in range(10)])
    mark = {"mark": "update tally set n = ? where (name) in (values {rows})"}
    monkeypatch.setattr(sqlite_bulk, "SQL", mark)
    assert in_bulk(db, "mark", [("n1",), ("n2",), ("absent",)], 7) == 2
    assert db.execute("select sum(n) from tally").get == 14
