"""Laws that hold for every schedule, the remaining forms, bounds and days off, and hostile text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.core.errors import DulyError, InvalidInput, ScheduleError
from duly.core.instants import DAY, HOUR, MINUTE, format_instant, parse_instant
from duly.core.schedule import Schedule, parse_schedule, preview

NOW = parse_instant("2026-11-20T10:00:00Z")  # a Friday
NOON = parse_instant("2026-11-20T12:00:00Z")

SCHEDULES = (
    ("now", {}),
    ("in 5m", {}),
    ("at 2026-12-01T09:00", {"timezone": "Europe/Berlin"}),
    ("every 15m", {}),
    ("every 7m from 09:00", {"timezone": "Asia/Kolkata"}),
    ("every 100ms", {}),
    ("every 36h", {"calendar": ("SAT", "SUN", "12-25")}),
    ("after 15m", {}),
    ("0 2 * * *", {"timezone": "Europe/Berlin"}),
    ("*/10 * * * * *", {}),
    ("30 1-3 * * *", {"timezone": "Europe/Berlin", "dst": "shift"}),
    ("30 1-3 * * *", {"timezone": "America/New_York", "dst": "both"}),
    ("7 1 * * *", {"timezone": "Australia/Lord_Howe", "dst": "skip"}),
    ("0 0 29 2 *", {}),
    ("0 0 LW * *", {"timezone": "Pacific/Apia"}),
    ("* * * * *", {"calendar": ("MON", "TUE", "WED", "THU", "FRI", "SAT")}),
    ("0 9 * * *", {"start": NOW, "end": NOW + 90 * DAY}),
    ("RRULE:FREQ=MONTHLY;BYDAY=1MO", {"timezone": "Europe/Berlin"}),
    ("RRULE:FREQ=WEEKLY;INTERVAL=3;BYDAY=MO,FR;BYHOUR=2;BYMINUTE=30", {"timezone": "Europe/Berlin", "dst": "both"}),
    ("RRULE:FREQ=MINUTELY;INTERVAL=20;BYHOUR=1,2,3", {"timezone": "Europe/Berlin"}),
    ("RRULE:FREQ=DAILY;COUNT=200", {"timezone": "America/New_York", "calendar": ("SUN",)}),
    ("R100/2026-10-01T02:30/P1D", {"timezone": "Europe/Berlin"}),
    ("R/2026-10-01T02:30:00Z/PT1H", {}),
)


@pytest.mark.parametrize(("text", "options"), SCHEDULES)
@given(
    instant=st.one_of(
        st.integers(NOW - 400 * DAY, NOW + 800 * DAY),
        st.integers(0, parse_instant("2200-01-01T00:00:00Z")),
        st.sampled_from([parse_instant("2027-10-31T01:00:00Z"), parse_instant("2027-03-28T01:00:00Z"), NOW, 0]),
    )
)
@settings(max_examples=25, deadline=None)
def test_next_and_latest_are_two_views_of_one_set(text: str, options: dict[str, Any], instant: int) -> None:
    """next_after is strictly later, latest_until is not, nothing lies between, and asking again gives the same."""
    schedule = parse_schedule(text, anchor=NOW, **options)
    later, earlier = schedule.next_after(instant), schedule.latest_until(instant)
    if later is not None:
        assert later > instant
        assert schedule.next_after(later - 1) == later
        assert schedule.latest_until(later) == later
        assert schedule.latest_until(later - 1) == earlier
        following = schedule.next_after(later)
        assert following is None or following > later
    if earlier is not None:
        assert earlier <= instant
        assert schedule.latest_until(earlier) == earlier
        assert schedule.next_after(earlier) == later
    some = schedule.between(instant, instant + DAY, 20)
    assert some == sorted(set(some))
    assert [at for at in some if not instant < at <= instant + DAY] == []
    count = schedule.count_between(instant, instant + DAY)
    if count is not None and len(some) < 20:
        assert count == len(some)


@pytest.mark.parametrize(("text", "options"), SCHEDULES)
def test_chains_grow_and_are_described(text: str, options: dict[str, Any]) -> None:
    """Fifty steps, each later; a sentence that begins with a capital or a number; a preview of the same instants."""
    schedule = parse_schedule(text, anchor=NOW, **options)
    at, chain = NOW - 1, []
    while len(chain) < 50 and (following := schedule.next_after(at)) is not None:
        assert following > at
        chain.append(at := following)
    assert [seen.at for seen in preview(schedule, NOW - 1, 50)] == chain
    sentence = schedule.describe()
    assert sentence[0].isupper() or sentence[0].isdigit()
    assert parse_schedule(text, anchor=NOW, **options) == schedule


def test_once() -> None:
    """`now`, `in`, `at` and a bare RFC 3339 time fire once, at their instant."""
    expected = {
        "now": NOW,
        "NOW": NOW,
        "in 1h30m": NOW + 90 * MINUTE,
        "in PT5M": NOW + 5 * MINUTE,
        "at 2026-12-01T09:00": parse_instant("2026-12-01T08:00:00Z"),
        "at 2026-12-01 09:00:30.5": parse_instant("2026-12-01T08:00:30.5Z"),
        "at 2026-12-01T09:00:00+05:30": parse_instant("2026-12-01T03:30:00Z"),
        "2026-12-01T09:00:00Z": parse_instant("2026-12-01T09:00:00Z"),
    }
    for text, at in expected.items():
        schedule = parse_schedule(text, timezone="Europe/Berlin", anchor=NOW)
        assert (schedule.kind, schedule.next_after(0), schedule.next_after(at)) == ("once", at, None), text
        assert (schedule.latest_until(at), schedule.latest_until(at - 1)) == (at, None)
        assert schedule.count_between(0, at) == 1
        assert schedule.after_completion(at) is None


def test_rates() -> None:
    """From the epoch, from `start`, through a time of day, from a full time."""

    def first(text: str, **options: Any) -> str:
        at = parse_schedule(text, anchor=NOW + 1, **options).next_after(NOW)
        assert at is not None
        return format_instant(at)[:19]

    assert first("every 15m") == "2026-11-20T10:15:00"
    assert first("every 15m", start=NOW + 7 * MINUTE) == "2026-11-20T10:07:00"
    assert first("every 25m from 09:00") == first("every 25m from 9:00:00")
    assert first("every 1d from 09:00", timezone="Asia/Kolkata") == "2026-11-21T03:30:00"
    assert first("every 2d from 09:00", timezone="Asia/Kolkata", start=NOW) == "2026-11-22T03:30:00"
    assert first("every 1h from 2026-12-24T18:00", timezone="Europe/Berlin") == "2026-12-24T17:00:00"
    assert first("every 1h from 2026-12-24T18:00:00Z") == "2026-12-24T18:00:00"
    schedule = parse_schedule("every 15m", anchor=0, end=NOW + HOUR)
    assert schedule.count_between(NOW, NOW + DAY) == 4
    assert schedule.count_between(NOW - 1, NOW - 1) == 0


def test_delays() -> None:
    """The first run at the anchor or the start, the others after the last completion, none past the end."""
    schedule = parse_schedule("after 15m", anchor=NOW, end=NOON)
    assert schedule.kind == "delay"
    assert schedule.next_after(NOW - 1) == schedule.latest_until(NOW) == NOW
    assert schedule.next_after(NOW) is None
    assert schedule.after_completion(NOW + MINUTE) == NOW + 16 * MINUTE
    assert schedule.after_completion(NOON - 15 * MINUTE) == NOON
    assert schedule.after_completion(NOON) is None
    later = parse_schedule("after 15m", anchor=NOW, start=NOON)
    assert later.next_after(NOW) == NOON
    assert later.after_completion(NOW) == NOON


def test_delays_wait_for_a_working_day() -> None:
    """A run that would fall on a day off begins with the next day that is not, in local time."""
    schedule = parse_schedule("after 15m", anchor=NOW, timezone="Europe/Berlin", calendar=("SAT", "SUN"))
    assert schedule.after_completion(parse_instant("2026-11-21T09:00:00Z")) == parse_instant("2026-11-22T23:00:00Z")
    assert schedule.after_completion(NOW) == NOW + 15 * MINUTE


def test_bounds_are_inclusive() -> None:
    """An occurrence at `start` or at `end` happens."""
    schedule = parse_schedule("0 * * * *", anchor=0, start=NOW, end=NOON)
    assert schedule.between(0, NOON + DAY, 99) == [NOW, NOW + HOUR, NOON]
    assert schedule.latest_until(NOON + DAY) == NOON
    assert schedule.latest_until(NOW - 1) is None
    inside = parse_schedule("0 * * * *", anchor=0, start=NOW + 1, end=NOON - 1)
    assert inside.between(0, NOON + DAY, 99) == [NOW + HOUR]


def test_days_off() -> None:
    """Single dates, yearly dates and weekdays, for cron, rates and recurrences alike."""
    off = ("SAT", "sun", "2026-11-23", "11-24")
    for text in ("0 9 * * *", "every 1d from 09:00", "RRULE:FREQ=DAILY;BYHOUR=9"):
        schedule = parse_schedule(text, anchor=NOW, calendar=off)
        found = [seen.local[5:10] for seen in preview(schedule, NOW, 5)]
        assert found == ["11-25", "11-26", "11-27", "11-30", "12-01"], text
        latest = schedule.latest_until(parse_instant("2026-11-24T12:00:00Z"))
        assert latest is None or latest <= NOW, text
    busy = parse_schedule("every 1m", anchor=NOW, calendar=("SAT", "SUN"), timezone="Europe/Berlin")
    assert busy.next_after(parse_instant("2026-11-20T22:59:30Z")) == parse_instant("2026-11-22T23:00:00Z")


@pytest.mark.parametrize(
    ("options", "pointer", "reason"),
    [
        ({"timezone": "Europe/berlin"}, "/timezone", "did you mean Europe/Berlin"),
        ({"timezone": "berlin"}, "/timezone", "did you mean Europe/Berlin"),
        ({"timezone": "Europe/Berln"}, "/timezone", "did you mean Europe/Berlin"),
        ({"timezone": "new york"}, "/timezone", "did you mean America/New_York"),
        ({"timezone": "Europe"}, "/timezone", "unknown time zone"),
        ({"timezone": "../../etc/passwd"}, "/timezone", "unknown time zone"),
        ({"timezone": ""}, "/timezone", "unknown time zone"),
        ({"timezone": "A\x00B"}, "/timezone", "unknown time zone"),
        ({"timezone": "A" * 10_000}, "/timezone", "unknown time zone"),
        ({"dst": "maybe"}, "/dst", "not one of cron, shift"),
        ({"start": NOON, "end": NOW}, "/end", "before it starts"),
        ({"start": -1}, "/start", "outside"),
        ({"end": 10**18}, "/end", "outside"),
        ({"calendar": ("SAT", "Caturday")}, "/calendar/1", "not a day off"),
        ({"calendar": ("2026-02-30",)}, "/calendar/0", "not a day off"),
        ({"calendar": ("02-30",)}, "/calendar/0", "not a day off"),
        ({"calendar": ("２０２６-01-01",)}, "/calendar/0", "not a day off"),
        ({"calendar": ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")}, "/calendar", "no day to run"),
        ({"calendar": ("SAT",) * 2000}, "/calendar", "at most"),
    ],
)
def test_bad_options_are_refused_where_they_stand(options: dict[str, Any], pointer: str, reason: str) -> None:
    """Each option has its own pointer."""
    with pytest.raises(InvalidInput, match=reason) as caught:
        parse_schedule("0 2 * * *", anchor=NOW, **options)
    assert [error.pointer for error in caught.value.errors] == [pointer]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "options", "pointer"),
    [
        ("0 0 25 12 *", {"calendar": ("12-25",)}, "/calendar"),
        ("at 2026-12-25T09:00", {"calendar": ("12-25",)}, "/calendar"),
        ("every 7d", {"calendar": ("THU",)}, "/schedule"),
        ("0 0 1 1 *", {"start": NOW, "end": NOON}, "/schedule"),
        ("at 2026-12-25T09:00", {"end": NOON}, "/schedule"),
        ("RRULE:FREQ=YEARLY;BYMONTH=1;BYMONTHDAY=1", {"calendar": ("01-01",)}, "/schedule"),
    ],
)
def test_what_its_options_never_let_run_is_refused(text: str, options: dict[str, Any], pointer: str) -> None:
    """A schedule whose every occurrence is out of bounds or on a day off is an error, not a job that sleeps."""
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(text, anchor=NOW, **options)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \t ", "empty"),
        ("foo", "is not a schedule"),
        ("tomorrow at noon", "is not a schedule"),
        ("15m", "duration alone"),
        ("PT15M", "duration alone"),
        ("every", "is not a schedule"),
        ("every ", "is not a schedule"),
        ("every 15", "say 15s"),
        ("every 1ms", "shortest interval"),
        ("every 0s", "shortest interval"),
        ("every 101w from", "not a unit|lacks a unit|not a duration"),
        ("every 15m from 25:00", "not a time"),
        ("every 15m from noon", "not a time"),
        ("every day", "not a duration"),
        ("after 0s", "shortest delay"),
        ("in soon", "not a duration"),
        ("in 200000d", "longer than 100 years"),
        ("at noon", "not a time"),
        ("at 2026-13-01T09:00", "no such time"),
        ("at 2026-12-01T25:00", "no such time"),
        ("at 2026-12-01T09:00+1", "not an RFC 3339"),
        ("at 1969-12-01T09:00", "outside the years"),
        ("2026-12-01T09:00:00", "without offset"),
        ("2026-12-01", "not an RFC 3339"),
        ("0 2 * * *\n0 3 * * *", "one line"),
        ("0 2 * * *\x00", r"U\+0000"),
        ("0 2 * * *\x1b[31m", r"U\+001B"),
        ("０ 2 * * *", r"U\+FF10"),
        ("٣ 2 * * *", r"U\+0663"),
        ("0 2 * * *\u2028", r"U\+2028"),
        ("\u202e* * * * *", r"U\+202E"),
        ("\ud800", r"U\+D800"),
        ("* " * 5000, "at most 1000"),
        ("1," * 400 + "1 * * * *", "longer than 250"),
        ("every " + "9" * 900 + "s", "at most 64"),
        ("0 0 * * " + "MON," * 60, "empty item|longer"),
        ("RRULE:FREQ=DAILY;BYHOUR=" + ",".join(["1"] * 450), "more than 400"),
        ("RRULE:" + "FREQ=DAILY;" * 80, "twice"),
        ("R" + "9" * 500 + "/2026-01-01T00:00:00Z/PT1H", "count goes from"),
    ],
)
def test_what_is_not_a_schedule(text: str, reason: str) -> None:
    """Malformed and hostile text is refused with a position inside it, a reason, and no wall of text."""
    with pytest.raises(ScheduleError, match=reason) as caught:
        parse_schedule(text, anchor=NOW)
    assert 0 <= caught.value.position <= len(text)
    assert len(caught.value.reason) < 400


@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(
                [*"0123456789*/,-?LWH#() :;=.@PTZ", "MON", "RRULE:FREQ=DAILY", "every ", "at ", "2026-12-01T09:00"]
            ),
            max_size=14,
        ).map("".join),
    )
)
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    """Whatever comes in, the answer is a schedule that fires or an error of ours."""
    try:
        schedule = parse_schedule(text, anchor=NOW, timezone="Europe/Berlin")
    except DulyError:
        return
    assert isinstance(schedule, Schedule)
    assert schedule.next_after(-1) is not None
    assert schedule.latest_until(parse_instant("9999-12-31T23:59:59Z")) is not None


def test_sentences() -> None:
    """What people read above the preview."""
    expected = {
        "now": "Once, at 2026-11-20 11:00:00 Europe/Berlin",
        "every 90s": "Every 90 seconds",
        "every 15m from 09:00": "Every 15 minutes, on a grid through 09:00 Europe/Berlin",
        "every 60m": "Every hour",
        "every 1d": "Every 24 hours",
        "R3/2026-12-01T06:00:00Z/P1Y6M": "3 times, every 18 months from 2026-12-01 07:00:00 Europe/Berlin",
        "R/2026-12-01T06:00:00Z/P1W": "Every week from 2026-12-01 07:00:00 Europe/Berlin",
        "after 1h": "1 hour after the previous run has completed",
        "30 2 * * *": "At 02:30 every day, Europe/Berlin time",
        "0 0 13 * FRI": "At 00:00 on the 13th day of month or on Friday, Europe/Berlin time",
        "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=9;BYMINUTE=0": "Every month on the last Friday at 09:00, Europe/Berlin time",
        "RRULE:FREQ=WEEKLY;INTERVAL=2;COUNT=3": "Every 2 weeks on Friday at 11:00, Europe/Berlin time, 3 times",
        "R12/2026-01-01T00:00:00Z/PT1H": "12 times, every hour from 2026-01-01 01:00:00 Europe/Berlin",
    }
    for text, sentence in expected.items():
        assert parse_schedule(text, anchor=NOW, timezone="Europe/Berlin").describe() == sentence
    bounded = parse_schedule("0 2 * * *", anchor=NOW, start=NOW, calendar=("SAT", "12-25"))
    assert (
        bounded.describe()
        == "At 02:00 every day, UTC time, not before 2026-11-20 10:00:00 UTC, except on SAT and 12-25"
    )
