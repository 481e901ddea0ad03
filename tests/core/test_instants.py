"""Instants and durations as text: both ways, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.core.errors import InvalidInput
from duly.core.instants import (
    DAY,
    HOUR,
    MAX_DURATION,
    MAX_INSTANT,
    MINUTE,
    SECOND,
    WEEK,
    compact_instant,
    format_duration,
    format_instant,
    parse_compact_instant,
    parse_duration,
    parse_instant,
)

instants = st.integers(0, MAX_INSTANT)


@given(instants)
def test_instants_round_trip(us: int) -> None:
    """Both forms give back what they were made from."""
    assert parse_instant(format_instant(us)) == us
    assert parse_compact_instant(compact_instant(us)) == us


@given(instants, instants)
def test_both_forms_sort_as_time_does(one: int, other: int) -> None:
    """Text order is time order, so that a store can compare either."""
    assert (format_instant(one) < format_instant(other)) == (one < other)
    assert (compact_instant(one) < compact_instant(other)) == (one < other)


def test_the_forms() -> None:
    """Six decimals, UTC; the compact form has no character that a URL escapes."""
    us = 1_796_086_800_000_000
    assert format_instant(us) == "2026-12-01T01:00:00.000000Z"
    assert compact_instant(us) == "20261201T010000.000000Z"
    assert format_instant(0) == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-12-01T02:00:00.5+01:00",
        "2026-12-01t01:00:00.500z",
        "2026-12-01 01:00:00.500000Z",
        "2026-11-30T20:30:00.500000999-04:30",
    ],
)
def test_any_offset_is_taken(text: str) -> None:
    """RFC 3339 in its variants; digits past the microsecond are dropped."""
    assert format_instant(parse_instant(text)) == "2026-12-01T01:00:00.500000Z"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2026-12-01T01:00:00", "no offset"),
        ("2026-12-01", "not an RFC 3339 time"),
        ("2026-12-01T01:00Z", "not an RFC 3339 time"),
        ("20261201T010000Z", "not an RFC 3339 time"),
        ("2026-02-30T01:00:00Z", "no such time"),
        ("2026-12-01T24:00:00Z", "no such time"),
        ("2026-12-01T23:59:60Z", "no such time"),
        ("2026-12-01T01:00:00+99:00", "no such time"),
        ("0000-12-01T01:00:00Z", "no such time"),
        ("1969-12-31T23:59:59Z", "outside the years"),
        ("1970-01-01T00:30:00+01:00", "outside the years"),
        ("9999-12-31T23:59:59-01:00", "outside the years"),
        ("２０２６-12-01T01:00:00Z", "not an RFC 3339 time"),
        ("2026-12-01T01:00:00Z\n", "not an RFC 3339 time"),
        ("2026-12-01T01:00:00.0000000001Z", "not an RFC 3339 time"),
        ("", "not an RFC 3339 time"),
        ("Z" * 10_000, "not an RFC 3339 time"),
    ],
)
def test_bad_instants_are_refused_where_they_stand(text: str, reason: str) -> None:
    """Each with its reason, at the caller's pointer."""
    with pytest.raises(InvalidInput, match=reason) as caught:
        parse_instant(text, pointer="/start")
    assert [error.pointer for error in caught.value.errors] == ["/start"]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["20261201T010000Z", "20261301T010000.000000Z", "19691231T235959.000000Z", "", "2026-12-01T01:00:00.000000Z"],
)
def test_bad_compact_instants_are_refused(text: str) -> None:
    """Only the exact form is taken: run ids are made by duly."""
    with pytest.raises(InvalidInput):
        parse_compact_instant(text)


@given(st.integers(0, MAX_DURATION))
def test_durations_round_trip(us: int) -> None:
    """Every duration has a text that reads back."""
    assert parse_duration(format_duration(us)) == us


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("500ms", 500_000),
        ("250us", 250),
        ("30s", 30 * SECOND),
        ("1h30m", 90 * MINUTE),
        ("90m", 90 * MINUTE),
        ("2d", 2 * DAY),
        ("1w", WEEK),
        ("1w2d3h4m5s6ms7us", WEEK + 2 * DAY + 3 * HOUR + 4 * MINUTE + 5 * SECOND + 6_007),
        ("0s", 0),
        ("PT1H30M", 90 * MINUTE),
        ("P2D", 2 * DAY),
        ("P1W", WEEK),
        ("P1DT12H", 36 * HOUR),
        ("PT0.25S", 250_000),
        ("pt5m", 5 * MINUTE),
    ],
)
def test_durations_are_read(text: str, us: int) -> None:
    """The short form and ISO 8601."""
    assert parse_duration(text) == us


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0s"), (90 * MINUTE, "1h30m"), (WEEK, "1w"), (10 * DAY, "10d"), (1_500_000, "1s500ms"), (-MINUTE, "-1m")],
)
def test_durations_are_written(us: int, text: str) -> None:
    """Large units first, weeks only when whole."""
    assert format_duration(us) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("30", "say 30s, 30m or 30h"),
        ("1h30", "say 30s"),
        ("", "empty"),
        ("s", "not a duration"),
        ("-1s", "not a duration"),
        ("+1s", "not a duration"),
        ("1 h", "lacks a unit"),
        ("1.5h", "smaller unit"),
        ("1h1h", "each once"),
        ("1m1h", "large to small"),
        ("1ms1s", "large to small"),
        ("5min", "not a unit"),
        ("5H", "not a unit"),
        ("１s", "not a duration"),
        ("٣s", "not a duration"),
        ("1s\n", "not a duration"),
        ("1s\x00", "not a duration"),
        ("5µs", "lacks a unit"),
        ("101y", "not a unit"),
        ("36526d", "longer than 100 years"),
        ("999999999999999999w", "longer than 100 years"),
        ("9" * 63 + "s", "lacks a unit"),
        ("1" * 10_000, "at most 64"),
        ("P", "ISO 8601"),
        ("PT", "ISO 8601"),
        ("P1DT", "ISO 8601"),
        ("P1M", "ISO 8601"),
        ("P1Y", "ISO 8601"),
        ("PT1M1H", "ISO 8601"),
        ("PT-1H", "ISO 8601"),
        ("P١D", "ISO 8601"),
    ],
)
def test_bad_durations_are_refused(text: str, reason: str) -> None:
    """Each with what to write instead, at the caller's pointer."""
    with pytest.raises(InvalidInput, match=reason) as caught:
        parse_duration(text, pointer="/timeout")
    assert [error.pointer for error in caught.value.errors] == ["/timeout"]


def test_without_a_pointer_the_sentence_stands_alone() -> None:
    """A caller that knows the field gets no empty pointer."""
    with pytest.raises(InvalidInput) as caught:
        parse_duration("30")
    assert caught.value.errors == ()


@given(st.text(max_size=70))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever comes in, the answer is a value or InvalidInput."""
    for parse in (parse_duration, parse_instant, parse_compact_instant):
        try:
            assert parse(text) >= 0
        except InvalidInput:
            continue
