"""Cursors survive the trip to a client and back; pages of several sources merge into one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.core.errors import Malformed
from duly.core.paging import (
    MAX_PAGE,
    job_cursor,
    job_position,
    merge,
    page_limit,
    run_cursor,
    run_position,
)

POSITIONS = st.tuples(st.integers(0, 30), st.sampled_from("abc"))


@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=50))
def test_a_run_cursor_comes_back(at: int, job_id: str) -> None:
    """As URL-safe text."""
    cursor = run_cursor((at, job_id))
    assert cursor.isascii()
    assert not set(cursor) & set("+/= ")
    assert run_position(cursor) == (at, job_id)


@given(st.text(max_size=50), st.text(max_size=200))
def test_a_job_cursor_comes_back(job_id: str, name: str) -> None:
    """In its own order only."""
    by_id, by_name = job_cursor((job_id,)), job_cursor((name, job_id))
    assert job_position(by_id, by_name=False) == (job_id,)
    assert job_position(by_name, by_name=True) == (name, job_id)
    for cursor, other in ((by_id, True), (by_name, False)):
        with pytest.raises(Malformed):
            job_position(cursor, by_name=other)
        with pytest.raises(Malformed):
            run_position(cursor)


@given(st.text())
def test_any_other_text_is_malformed_or_a_cursor(text: str) -> None:
    """Nothing else comes of it."""
    for read in (run_position, lambda cursor: job_position(cursor, by_name=False)):
        try:
            read(text)
        except Malformed:
            continue


def test_a_page_has_1_to_1000_rows() -> None:
    """Whatever is asked."""
    assert [page_limit(n) for n in (-1, 0, 1, 100, 1_000, 1_001)] == [1, 1, 1, 100, MAX_PAGE, MAX_PAGE]


@given(
    sources=st.lists(st.lists(POSITIONS, max_size=12), max_size=4),
    limit=st.integers(1, 5),
    step=st.integers(1, 5),
    descending=st.booleans(),
)
def test_merged_pages_make_up_the_whole_in_order(
    sources: list[list[tuple[int, str]]], limit: int, step: int, descending: bool
) -> None:
    """Each source shows at most `step` items beyond the cursor; no item is lost, doubled or out of order."""
    distinct = [{(at, f"{job}{i}") for at, job in source} for i, source in enumerate(sources)]
    everything = sorted(set().union(*distinct), reverse=descending)
    seen: list[tuple[int, str]] = []
    cursor: tuple[int, str] | None = None
    for _ in range(200):
        found, reaches = [], []
        for source in distinct:
            beyond = [p for p in source if cursor is None or (p < cursor if descending else p > cursor)]
            shown = sorted(beyond, reverse=descending)[:step]
            found += [(p, p) for p in shown]
            if len(beyond) > step:
                reaches.append(shown[-1])
        page, cursor = merge(found, reaches, limit, descending=descending)
        assert len(page) <= limit
        seen += page
        if cursor is None:
            break
    assert seen == everything
