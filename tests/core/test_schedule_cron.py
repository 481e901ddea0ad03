"""Cron expressions: the grammar, the rule for days, H, and cronsim as the oracle on wall time."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise

import pytest
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from duly.core.errors import ScheduleError
from duly.core.instants import DAY, HOUR, MINUTE, SECOND, parse_instant
from duly.core.schedule import parse_schedule

NOW = parse_instant("2026-11-20T10:00:00Z")  # a Friday


def times(text: str, count: int, *, seed: str = "", after: int = NOW) -> list[str]:
    schedule = parse_schedule(text, anchor=NOW, seed=seed)
    found = []
    at: int | None = after
    for _ in range(count):
        assert at is not None
        at = schedule.next_after(at)
        assert at is not None
        found.append(datetime.fromtimestamp(at / SECOND, UTC).strftime("%m-%d %H:%M:%S"))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * * *", ["11-21 02:00:00", "11-22 02:00:00"]),
        ("*/10 * * * * *", ["11-20 10:00:10", "11-20 10:00:20"]),
        ("5/20 * * * *", ["11-20 10:05:00", "11-20 10:25:00", "11-20 10:45:00", "11-20 11:05:00"]),
        ("5-5/20 * * * *", ["11-20 10:05:00", "11-20 11:05:00"]),
        ("0 9-17/4 * * *", ["11-20 13:00:00", "11-20 17:00:00", "11-21 09:00:00"]),
        ("0 0 L * *", ["11-30 00:00:00", "12-31 00:00:00", "01-31 00:00:00", "02-28 00:00:00"]),
        ("0 0 LW * *", ["11-30 00:00:00", "12-31 00:00:00", "01-29 00:00:00"]),
        ("0 0 * * 5L", ["11-27 00:00:00", "12-25 00:00:00"]),
        ("0 0 * * FRIL", ["11-27 00:00:00", "12-25 00:00:00"]),
        ("0 0 * * FRI#2", ["12-11 00:00:00", "01-08 00:00:00"]),
        ("0 0 * * mon-wed", ["11-23 00:00:00", "11-24 00:00:00", "11-25 00:00:00", "11-30 00:00:00"]),
        ("0 0 * * 7", ["11-22 00:00:00", "11-29 00:00:00"]),
        ("0 0 * * 0", ["11-22 00:00:00", "11-29 00:00:00"]),
        ("0 0 * * SAT-SUN", ["11-21 00:00:00", "11-22 00:00:00", "11-28 00:00:00"]),
        ("0 0 ? JAN,jul ?", ["01-01 00:00:00", "01-02 00:00:00"]),
        ("@hourly", ["11-20 11:00:00"]),
        ("@Daily", ["11-21 00:00:00"]),
        ("@midnight", ["11-21 00:00:00"]),
        ("@weekly", ["11-22 00:00:00"]),
        ("@monthly", ["12-01 00:00:00"]),
        ("@yearly", ["01-01 00:00:00"]),
        ("@annually", ["01-01 00:00:00"]),
        ("  0\t2  * * *  ", ["11-21 02:00:00"]),
    ],
)
def test_the_grammar(text: str, expected: list[str]) -> None:
    """Every form of a field, and the macros."""
    assert times(text, len(expected)) == expected


def test_days_of_month_and_weekdays_are_either_when_both_are_restricted() -> None:
    """Vixie's rule: 13th or Friday; but with a star in front of either, both must fit."""
    assert times("0 0 13 * FRI", 4) == ["11-27 00:00:00", "12-04 00:00:00", "12-11 00:00:00", "12-13 00:00:00"]
    assert times("0 0 13 * */5", 2) == ["12-13 00:00:00", "06-13 00:00:00"]


def test_h_is_spread_by_the_seed_and_stays() -> None:
    """The same seed gives the same time in every process; many seeds fill the field; ranges and steps hold."""
    assert times("H H * * *", 1, seed="0191-job") == ["11-21 04:31:00"]
    minutes = {times("H * * * *", 1, seed=str(number))[0][9:11] for number in range(600)}
    assert len(minutes) == 60
    for number in range(50):
        schedule = parse_schedule("H(10-19) * * * *", anchor=0, seed=str(number))
        first = schedule.next_after(NOW - 1)
        assert first is not None
        assert 10 <= first // MINUTE % 60 <= 19
        quarter = parse_schedule("H/15 * * * *", anchor=0, seed=str(number))
        some = quarter.between(NOW - 1, NOW + HOUR - 1, 9)
        assert [later - one for one, later in pairwise(some)] == [15 * MINUTE] * 3
        monthly = parse_schedule("0 0 H * *", anchor=0, seed=str(number))
        assert (
            len(monthly.between(parse_instant("2027-01-01T00:00:00Z") - 1, parse_instant("2027-12-31T00:00:00Z"), 20))
            == 12
        )


def test_schedules_without_h_or_anchor_are_shared() -> None:
    """Jobs with the same expression hold one value; seed and anchor matter only where they are used."""
    one = parse_schedule("0 2 * * *", anchor=1, seed="a")
    assert parse_schedule("0 2 * * *", anchor=2, seed="b") is one
    assert parse_schedule("H 2 * * *", anchor=2, seed="b") != parse_schedule("H 2 * * *", anchor=2, seed="a")
    assert parse_schedule("in 5m", anchor=2) != parse_schedule("in 5m", anchor=3)


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("0 0 31 2 *", 4, "no day 31 in FEB"),
        ("0 0 31 4,6,9,11 *", 4, "no day 31 in APR, JUN, SEP, NOV"),
        ("0 0 30 2 ?", 4, "no day 30 in FEB"),
        ("0 0 * 2 MON#5,TUE#6", 14, "1st to a 5th"),
        ("*/0 * * * *", 0, "step of 0"),
        ("*/90 * * * *", 0, "larger than the minute field"),
        ("* */25 * * *", 2, "larger than the hour field"),
        ("60 * * * *", 0, "60 is not a minute"),
        ("0 24 * * *", 2, "24 is not an hour"),
        ("0 0 0 * *", 4, "0 is not a day of month"),
        ("0 0 * 13 *", 6, "13 is not a month"),
        ("0 0 * * 8", 8, "8 is not a weekday"),
        ("0 22-2 * * *", 2, "runs backwards"),
        ("0 0 * * FRI-MON", 8, "runs backwards"),
        ("0,5,x * * * *", 4, "'X' is not something the minute field"),
        ("0,,5 * * * *", 2, "empty item"),
        ("0, * * * *", 2, "empty item"),
        ("? * * * *", 0, "stands alone"),
        ("0 0 ?/2 * *", 4, "stands alone"),
        ("0 0 MON * *", 4, "'MON' is not something the day of month"),
        ("0 0 * FRI *", 6, "'FRI' is not something the month"),
        ("0 0 L/2 * *", 4, "take no step"),
        ("L 0 * * *", 0, "day-of-month field"),
        ("0 0 5L * *", 4, "weekday field"),
        ("0 0 1#2 * *", 4, "weekday field"),
        ("0 0 * * 5L/2", 8, "weekday field"),
        ("0 0 15W * *", 4, "'15W'"),
        ("0 0 L-3 * *", 4, "'L-3'"),
        ("99999 * * * *", 0, "'99999'"),
        ("9999 * * * *", 0, "9999 is not a minute"),
        ("H(5-1) * * * *", 0, "runs backwards"),
        ("H(0-99) * * * *", 0, "99 is not a minute"),
        ("1-2-3 * * * *", 0, "'1-2-3'"),
        ("1//2 * * * *", 0, "'1//2'"),
        ("0 0 * *", 0, "this has 4"),
        ("0 0 0 * * * 2027", 0, "this has 7"),
        ("@reboot", 0, "names no time"),
        ("@fortnightly", 0, "is not one of @yearly"),
    ],
)
def test_bad_expressions_say_where_and_why(text: str, position: int, reason: str) -> None:
    """Position, reason and an example, for each way to be wrong."""
    with pytest.raises(ScheduleError, match=reason) as caught:
        parse_schedule(text, anchor=NOW)
    assert caught.value.position == position
    assert caught.value.example


@pytest.mark.parametrize(
    ("text", "year", "day"),
    [("0 0 29 2 *", 2028, "02-29"), ("0 0 29 2 */7", 2032, "02-29"), ("59 59 23 31 12 *", 2026, "12-31")],
)
def test_rare_dates_are_found(text: str, year: int, day: str) -> None:
    """A leap day, a leap day that is a Sunday, the last second of a year."""
    at = parse_schedule(text, anchor=NOW).next_after(NOW)
    assert at is not None
    assert datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y %m-%d") == f"{year} {day}"


def test_a_leap_sunday_is_found_over_the_century() -> None:
    """2100 is no leap year: forty years without a Sunday, 29 February, either way."""
    schedule = parse_schedule("0 0 29 2 */7", anchor=NOW)
    before, after = parse_instant("2088-02-29T00:00:00Z"), parse_instant("2128-02-29T00:00:00Z")
    assert schedule.next_after(before) == after
    assert schedule.latest_until(after - 1) == before


def test_it_ends_with_the_year_9998() -> None:
    """Near the end of time the answer is None, not an error."""
    schedule = parse_schedule("0 0 * * *", timezone="Pacific/Kiritimati", anchor=NOW)
    last = schedule.latest_until(parse_instant("9999-12-31T23:59:59Z"))
    assert last is not None
    assert schedule.next_after(last) is None
    assert schedule.next_after(parse_instant("9999-12-31T23:59:59Z")) is None
    first = schedule.next_after(-(10**20))
    assert first is not None
    assert 0 <= first < DAY
    assert schedule.latest_until(first - 1) is None


def field(low: int, high: int, extra: list[str]) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    ordered = st.tuples(value, value).map(sorted)
    items = st.one_of(
        value.map(str),
        ordered.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(ordered, st.integers(1, 5)).map(lambda both: f"{both[0][0]}-{both[0][1]}/{both[1]}"),
        st.tuples(value, st.integers(1, high - low)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
        st.sampled_from(extra),
    )
    # cronsim reads 5-5/2 as 5/2.
    items = items.filter(
        lambda item: not ("-" in item and "/" in item and len(set(item.split("/")[0].split("-"))) == 1)
    )
    return st.one_of(
        st.just("*"),
        st.integers(2, 6).map(lambda step: f"*/{step}"),
        st.lists(items, min_size=1, max_size=3).map(",".join),
    )


EXPRESSIONS = st.tuples(
    field(0, 59, ["0", "30"]),
    field(0, 59, ["0", "30"]),
    field(0, 23, ["0", "12"]),
    field(1, 31, ["L", "LW", "29", "31"]),
    field(1, 12, ["FEB", "2"]),
    field(0, 7, ["5L", "0L", "MON#1", "FRI#5", "SUN", "7"]),
).map(" ".join)


@given(
    expression=EXPRESSIONS,
    start=st.datetimes(*map(datetime.fromisoformat, ("1975-01-01", "2130-01-01"))),
)
@settings(max_examples=250, deadline=None)
def test_expressions_agree_with_cronsim_on_wall_time(expression: str, start: datetime) -> None:
    """In UTC, forwards and backwards, cronsim fires at the same seconds."""
    try:
        truth = list(islice(CronSim(expression, start), 4))
    except Exception:  # whatever it cannot read is no oracle
        assume(False)
        raise
    at = round(start.replace(tzinfo=UTC).timestamp() * SECOND)
    if not truth:
        with pytest.raises(ScheduleError):
            parse_schedule(expression, anchor=0)
        return
    schedule = parse_schedule(expression, anchor=0)
    expected = [round(seen.replace(tzinfo=UTC).timestamp()) * SECOND for seen in truth]
    assert schedule.between(at, expected[-1], 10) == expected
    backwards = list(islice(CronSim(expression, truth[-1], reverse=True), 3))
    assert schedule.latest_until(expected[-1]) == expected[-1]
    for seen, later in zip(backwards, expected[::-1], strict=False):
        assert schedule.latest_until(later - 1) == round(seen.replace(tzinfo=UTC).timestamp()) * SECOND
