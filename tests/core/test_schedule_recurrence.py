"""RRULE and ISO 8601 repeats: the standard's own examples, and dateutil as the oracle on wall time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from dateutil.rrule import rrulestr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from duly.core.errors import ScheduleError
from duly.core.instants import DAY, HOUR, SECOND, parse_instant
from duly.core.schedule import Schedule, parse_schedule

START = parse_instant("1997-09-02T09:00:00Z")


def times(schedule: Schedule, count: int, after: int = START - 1) -> list[str]:
    found = []
    at = schedule.next_after(after)
    while at is not None and len(found) < count:
        found.append(datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y-%m-%d %H:%M"))
        at = schedule.next_after(at)
    return found


def oracle(rule: str, start: datetime, count: int) -> list[str]:
    return [seen.strftime("%Y-%m-%d %H:%M") for seen in islice(rrulestr(rule, dtstart=start), count)]


# From RFC 5545, section 3.8.5.3, all from 2 September 1997, 09:00.
EXAMPLES = (
    "FREQ=DAILY;COUNT=10",
    "FREQ=DAILY;UNTIL=19971224T000000Z",
    "FREQ=DAILY;INTERVAL=2",
    "FREQ=DAILY;INTERVAL=10;COUNT=5",
    "FREQ=DAILY;UNTIL=20000131T140000Z;BYMONTH=1",
    "FREQ=WEEKLY;COUNT=10",
    "FREQ=WEEKLY;INTERVAL=2;WKST=SU",
    "FREQ=WEEKLY;UNTIL=19971007T000000Z;WKST=SU;BYDAY=TU,TH",
    "FREQ=WEEKLY;INTERVAL=2;UNTIL=19971224T000000Z;WKST=SU;BYDAY=MO,WE,FR",
    "FREQ=WEEKLY;INTERVAL=2;COUNT=8;WKST=SU;BYDAY=TU,TH",
    "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=MO",
    "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=SU",
    "FREQ=MONTHLY;COUNT=10;BYDAY=1FR",
    "FREQ=MONTHLY;INTERVAL=2;COUNT=10;BYDAY=1SU,-1SU",
    "FREQ=MONTHLY;COUNT=6;BYDAY=-2MO",
    "FREQ=MONTHLY;BYMONTHDAY=-3",
    "FREQ=MONTHLY;COUNT=10;BYMONTHDAY=2,15",
    "FREQ=MONTHLY;COUNT=10;BYMONTHDAY=1,-1",
    "FREQ=MONTHLY;INTERVAL=18;COUNT=10;BYMONTHDAY=10,11,12,13,14,15",
    "FREQ=MONTHLY;INTERVAL=2;BYDAY=TU",
    "FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13",
    "FREQ=MONTHLY;BYDAY=SA;BYMONTHDAY=7,8,9,10,11,12,13",
    "FREQ=MONTHLY;COUNT=3;BYDAY=TU,WE,TH;BYSETPOS=3",
    "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-2",
    "FREQ=YEARLY;COUNT=10;BYMONTH=6,7",
    "FREQ=YEARLY;INTERVAL=2;COUNT=10;BYMONTH=1,2,3",
    "FREQ=YEARLY;INTERVAL=3;COUNT=10;BYYEARDAY=1,100,200",
    "FREQ=YEARLY;BYDAY=20MO",
    "FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO",
    "FREQ=YEARLY;BYWEEKNO=53,-1;BYDAY=SU,MO",
    "FREQ=YEARLY;BYMONTH=3;BYDAY=TH",
    "FREQ=YEARLY;BYDAY=TH;BYMONTH=6,7,8",
    "FREQ=YEARLY;INTERVAL=4;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8",
    "FREQ=HOURLY;INTERVAL=3;UNTIL=19970902T170000Z",
    "FREQ=MINUTELY;INTERVAL=15;COUNT=6",
    "FREQ=MINUTELY;INTERVAL=90;COUNT=4",
    "FREQ=DAILY;BYHOUR=9,10,11,12,13,14,15,16;BYMINUTE=0,20,40",
    "FREQ=MINUTELY;INTERVAL=20;BYHOUR=9,10,11,12,13,14,15,16",
)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_the_examples_of_the_standard(rule: str) -> None:
    """What RFC 5545 shows is what fires."""
    schedule = parse_schedule(f"RRULE:{rule}", anchor=START)
    assert times(schedule, 30) == oracle(rule.replace("Z", ""), datetime.fromisoformat("1997-09-02T09:00"), 30)
    assert schedule.kind == "rrule"


def number_list(low: int, high: int, most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(st.integers(low, high), min_size=1, max_size=most).map(lambda some: ",".join(map(str, some)))


WEEKDAYS = st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"])
month_days = st.lists(st.one_of(st.integers(1, 31), st.integers(-31, -1)), min_size=1, max_size=4)
PARTS = {
    "BYMONTH": number_list(1, 12),
    "BYMONTHDAY": month_days.map(lambda some: ",".join(map(str, some))),
    "BYYEARDAY": st.lists(st.one_of(st.integers(1, 366), st.integers(-366, -1)), min_size=1, max_size=4).map(
        lambda some: ",".join(map(str, some))
    ),
    "BYWEEKNO": number_list(1, 53),
    "BYDAY": st.lists(WEEKDAYS, min_size=1, max_size=3).map(",".join),
    "BYHOUR": number_list(0, 23),
    "BYMINUTE": number_list(0, 59),
}
USABLE = {
    "YEARLY": ("BYMONTH", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYDAY", "BYHOUR", "BYMINUTE"),
    "MONTHLY": ("BYMONTH", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE"),
    "WEEKLY": ("BYMONTH", "BYDAY", "BYHOUR", "BYMINUTE"),
    "DAILY": ("BYMONTH", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE"),
    "HOURLY": ("BYMONTH", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE"),
    "MINUTELY": ("BYMONTH", "BYDAY", "BYHOUR", "BYMINUTE"),
}


@st.composite
def rules(draw: st.DrawFn) -> str:
    freq = draw(st.sampled_from(list(USABLE)))
    names = draw(st.lists(st.sampled_from(USABLE[freq]), max_size=3, unique=True))
    parts = [f"FREQ={freq}", *(f"{name}={draw(PARTS[name])}" for name in names)]
    if freq in ("YEARLY", "MONTHLY") and "BYDAY" not in names and "BYWEEKNO" not in names and draw(st.booleans()):
        nth = st.tuples(st.integers(-5, 5).filter(bool), WEEKDAYS).map(lambda pair: f"{pair[0]}{pair[1]}")
        parts.append("BYDAY=" + ",".join(draw(st.lists(nth, min_size=1, max_size=2))))
        names.append("BYDAY")
    if freq in ("YEARLY", "MONTHLY") and names and not {"BYHOUR", "BYMINUTE"} & set(names) and draw(st.booleans()):
        parts.append("BYSETPOS=" + draw(st.sampled_from(["1", "-1", "2", "1,-1", "-3"])))
    parts.append(f"INTERVAL={draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 12]))}")
    if freq in ("YEARLY", "MONTHLY", "WEEKLY", "DAILY"):
        parts.append("WKST=" + draw(WEEKDAYS))
    if draw(st.booleans()):
        parts.append(f"COUNT={draw(st.integers(1, 12))}")
    return ";".join(parts)


@given(
    rule=rules(),
    start=st.datetimes(*map(datetime.fromisoformat, ("1990-01-01", "2040-01-01"))).map(
        lambda moment: moment.replace(microsecond=0)
    ),
    skip=st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_rules_agree_with_dateutil(rule: str, start: datetime, skip: int) -> None:
    """On wall time, and asked from the middle, a rule fires when dateutil says."""
    anchor = round(start.replace(tzinfo=UTC).timestamp()) * SECOND
    try:
        schedule = parse_schedule(f"RRULE:{rule}", anchor=anchor)
    except ScheduleError:
        assume(False)  # never runs, or an hourly interval that does not divide the day
        raise
    first = schedule.next_after(-1)
    assert first is not None
    # dateutil walks empty years one by one: only rules that begin soon are worth its time.
    assume(first - anchor < 400 * DAY)
    expected = [
        round(seen.replace(tzinfo=UTC).timestamp()) * SECOND for seen in islice(rrulestr(rule, dtstart=start), 8)
    ]
    assert schedule.between(anchor - 1, expected[-1], 100) == expected
    assert schedule.latest_until(expected[-1] + SECOND - 1) == expected[-1]
    some = expected[min(skip, len(expected) - 1)]
    assert schedule.next_after(some - 1) == schedule.latest_until(some) == some
    if len(expected) < 8:
        assert schedule.next_after(expected[-1]) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never run"),
        ("RRULE:FREQ=MONTHLY;BYDAY=6MO", "never run"),
        ("RRULE:FREQ=DAILY;UNTIL=19700102", "never run"),
        ("RRULE:FREQ=HOURLY;INTERVAL=2;BYHOUR=10", "never meets"),
        ("RRULE:FREQ=HOURLY;INTERVAL=5;BYDAY=MO", "does not divide"),
        ("RRULE:FREQ=SECONDLY;INTERVAL=7;BYMONTH=1", "does not divide"),
        ("RRULE:FREQ=DAILY;COUNT=2;UNTIL=20300101", "not by both"),
        ("RRULE:FREQ=DAILY;COUNT=0", "COUNT takes numbers"),
        ("RRULE:FREQ=DAILY;COUNT=99999", "COUNT takes numbers"),
        ("RRULE:FREQ=DAILY;INTERVAL=0", "INTERVAL takes numbers"),
        ("RRULE:FREQ=DAILY;BYHOUR=24", "BYHOUR takes numbers"),
        ("RRULE:FREQ=DAILY;BYHOUR=-1", "BYHOUR takes numbers"),
        ("RRULE:FREQ=DAILY;BYEASTER=1", "not a part"),
        ("RRULE:FREQ=DAILY;BYDAY=1MO", "needs FREQ=MONTHLY"),
        ("RRULE:FREQ=DAILY;BYDAY=XX", "not a weekday"),
        ("RRULE:FREQ=WEEKLY;BYMONTHDAY=1", "cannot stand in a WEEKLY"),
        ("RRULE:FREQ=MONTHLY;BYWEEKNO=1", "cannot stand in a MONTHLY"),
        ("RRULE:FREQ=MONTHLY;BYDAY=MO;BYHOUR=1,2;BYSETPOS=1", "cannot pick"),
        ("RRULE:FREQ=MONTHLY;BYSETPOS=1", "there is none"),
        ("RRULE:FREQ=YEARLY;BYWEEKNO=20;BYDAY=1MO", "beside BYWEEKNO"),
        ("RRULE:INTERVAL=2", "needs a FREQ"),
        ("RRULE:FREQ=DAILY;FREQ=DAILY", "twice"),
        ("RRULE:FREQ", "NAME=VALUE"),
        ("RRULE:", "needs a FREQ"),
        ("DTSTART;TZID=Europe/Berlin:20260101T090000 RRULE:FREQ=DAILY", "goes into `timezone`"),
        ("DTSTART:20260101T090000 EXDATE:20260102", "go into `calendar`"),
        ("DTSTART:20261301T090000 RRULE:FREQ=DAILY", "no such time"),
        ("RRULE:FREQ=DAILY;UNTIL=tomorrow", "not an iCalendar time"),
        ("R0/2026-01-01T00:00:00Z/PT1H", "count goes from 1"),
        ("R5/2026-01-01T00:00:00Z/PT0S", "shortest period"),
        ("R5/2026-01-01T00:00:00Z/P0D", "period of nothing"),
        ("R5/2026-01-01T00:00:00Z/P1M1D", "mixes months with days"),
        ("R5/2026-01-01/PT1H", "not a time"),
        ("R5/PT1H", "between slashes"),
        ("R99999/2026-01-01T00:00:00Z/P1D", "counts to 1000"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    """Rules that never run, that cannot be answered or that say nothing clear are refused with the reason."""
    with pytest.raises(ScheduleError, match=reason):
        parse_schedule(text, anchor=START)


def test_positions_point_at_the_fault() -> None:
    """The position is that of the part, in the text as it was given."""
    text = "  RRULE:FREQ=DAILY;BYHOUR=9,24"
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(text, anchor=START)
    assert text[caught.value.position :] == "24"


def test_an_end_by_date_includes_the_day() -> None:
    """UNTIL=20260103 lets the run of the third happen."""
    schedule = parse_schedule(
        "DTSTART:20260101T090000 RRULE:FREQ=DAILY;UNTIL=20260103", timezone="Asia/Tokyo", anchor=0
    )
    assert times(schedule, 9, 0) == ["2026-01-01 00:00", "2026-01-02 00:00", "2026-01-03 00:00"]


def test_dtstart_of_its_own_beats_the_anchor() -> None:
    """DTSTART may be local, in UTC, on a line of its own; `start` then only bounds."""
    anchor = parse_instant("2026-06-01T00:00:00Z")
    one_line = parse_schedule("DTSTART:20260101T090000 RRULE:FREQ=YEARLY", timezone="Europe/Berlin", anchor=anchor)
    two_lines = parse_schedule("DTSTART:20260101T080000Z\r\nRRULE:FREQ=YEARLY", timezone="Europe/Berlin", anchor=anchor)
    assert times(one_line, 2, 0) == times(two_lines, 2, 0) == ["2026-01-01 08:00", "2027-01-01 08:00"]
    bounded = parse_schedule("DTSTART:20260101T090000 RRULE:FREQ=YEARLY", anchor=0, start=anchor)
    assert times(bounded, 1, 0) == ["2027-01-01 09:00"]


def test_without_dtstart_the_start_or_the_anchor_begins() -> None:
    """The time of day comes from `start`, else from the anchor, in local time."""
    anchor = parse_instant("2026-06-01T08:15:30.5Z")
    schedule = parse_schedule("FREQ=DAILY", timezone="Europe/Berlin", anchor=anchor)
    assert schedule.next_after(anchor) == parse_instant("2026-06-02T08:15:30Z")
    started = parse_schedule("FREQ=DAILY", timezone="Europe/Berlin", anchor=anchor, start=anchor + HOUR // 2 * 3 + 1)
    assert started.next_after(anchor) == parse_instant("2026-06-02T09:45:30Z")


def test_hourly_rules_follow_real_time() -> None:
    """An hour is an hour, also when the clock is set back: with and without BY… parts."""
    begin = parse_instant("2027-10-31T00:00:00+02:00")
    for text in ("RRULE:FREQ=HOURLY", "RRULE:FREQ=HOURLY;BYDAY=SU"):
        schedule = parse_schedule(text, timezone="Europe/Berlin", anchor=begin)
        assert schedule.between(begin - 1, begin + 6 * HOUR, 99) == [begin + n * HOUR for n in range(7)]


def test_a_count_includes_days_off() -> None:
    """COUNT counts what the rule says; days off then take from it."""
    anchor = parse_instant("2026-11-20T09:00:00Z")  # a Friday
    schedule = parse_schedule("RRULE:FREQ=DAILY;COUNT=5", anchor=anchor, calendar=("SAT", "SUN"))
    assert times(schedule, 9, 0) == ["2026-11-20 09:00", "2026-11-23 09:00", "2026-11-24 09:00"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R3/2026-01-01T00:00:00Z/PT1H", ["2026-01-01 00:00", "2026-01-01 01:00", "2026-01-01 02:00"]),
        ("R3/20260101T000000Z/PT36H", ["2026-01-01 00:00", "2026-01-02 12:00", "2026-01-04 00:00"]),
        ("r2/2026-01-31T09:00/p1m", ["2026-01-31 09:00", "2026-02-28 09:00"]),
        ("R3/2024-02-29T09:00/P1Y", ["2024-02-29 09:00", "2025-02-28 09:00", "2026-02-28 09:00"]),
        ("R2/2026-01-01T09:00/P2W", ["2026-01-01 09:00", "2026-01-15 09:00"]),
    ],
)
def test_repeats(text: str, expected: list[str]) -> None:
    """Rn fires n times in all, the first at its start; short months give their last day."""
    schedule = parse_schedule(text, anchor=0)
    assert schedule.kind == "repeat"
    assert times(schedule, 9, 0) == expected


def test_repeats_are_counted_by_arithmetic() -> None:
    """Elapsed repeats know how many occurrences an interval holds."""
    schedule = parse_schedule("R5/2026-01-01T00:00:00Z/PT1H", anchor=0)
    begin = parse_instant("2026-01-01T00:00:00Z")
    assert schedule.count_between(begin, begin + 100 * HOUR) == 4
    assert schedule.count_between(begin - 1, begin + timedelta(hours=2) // timedelta(microseconds=1)) == 3
    assert parse_schedule("R5/2026-01-01T00:00:00Z/P1D", anchor=0).count_between(0, begin) is None
