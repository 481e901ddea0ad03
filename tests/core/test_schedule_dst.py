"""What clock changes do to schedules: the design's table, and every mode against a brute-force scan of minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duly.core.errors import ScheduleError
from duly.core.instants import DAY, MINUTE, SECOND, format_instant, parse_instant
from duly.core.schedule import parse_schedule, preview

MODES = ("cron", "shift", "skip", "both")
BERLIN_SPRING, BERLIN_AUTUMN = "2027-03-27T23:59", "2027-10-30T23:59"
NEW_YORK_SPRING, NEW_YORK_AUTUMN = "2027-03-13T23:59", "2027-11-06T23:59"

# (zone, a day around whose clock change the modes are compared)
CHANGES = (
    ("Europe/Berlin", "2027-03-28"),
    ("Europe/Berlin", "2027-10-31"),
    ("America/New_York", "2027-03-14"),
    ("America/New_York", "2027-11-07"),
    ("Australia/Lord_Howe", "2027-04-04"),  # half an hour back
    ("Australia/Lord_Howe", "2027-10-03"),  # half an hour forward
    ("Pacific/Apia", "2011-12-30"),  # a day that does not exist
    ("Pacific/Kwajalein", "1993-08-21"),  # the same, elsewhere
    ("America/Sao_Paulo", "2018-11-04"),  # midnight does not exist
    ("America/Sao_Paulo", "2018-02-18"),  # 23:00 to midnight comes twice
    ("Asia/Gaza", "2040-10-20"),  # two changes within a week
    ("Africa/Casablanca", "2027-02-07"),  # standard time in summer
    ("Africa/Monrovia", "1972-01-07"),  # 44 minutes and 30 seconds
    ("Antarctica/Troll", "2027-03-28"),  # two hours forward
    ("UTC", "2027-03-28"),
)


def local(text: str, zone: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND


def fired(expression: str, zone: str, dst: str, after: str, until: str) -> list[str]:
    """Local times, with offsets, in a window given in local time."""
    schedule = parse_schedule(expression, timezone=zone, dst=dst, anchor=0)
    begin, end = local(after, zone), local(until, zone)
    return [seen.local[11:16] + seen.local[19:22] for seen in preview(schedule, begin, 60) if seen.at <= end]


@pytest.mark.parametrize(
    ("expression", "dst", "spring", "autumn"),
    [
        ("0 2 * * *", "cron", ["03:00+02"], ["02:00+02"]),
        ("0 2 * * *", "shift", ["03:00+02"], ["02:00+02"]),
        ("0 2 * * *", "skip", [], ["02:00+02"]),
        ("0 2 * * *", "both", ["03:00+02"], ["02:00+02", "02:00+01"]),
        ("30 2 * * *", "cron", ["03:00+02"], ["02:30+02"]),
        ("30 2 * * *", "shift", ["03:30+02"], ["02:30+02"]),
        ("30 2 * * *", "skip", [], ["02:30+02"]),
        ("30 2 * * *", "both", ["03:00+02"], ["02:30+02", "02:30+01"]),
        ("30 1-3 * * *", "cron", ["01:30+01", "03:00+02", "03:30+02"], ["01:30+02", "02:30+02", "03:30+01"]),
        ("30 1-3 * * *", "shift", ["01:30+01", "03:30+02"], ["01:30+02", "02:30+02", "03:30+01"]),
        ("15,45 2 * * *", "cron", ["03:00+02"], ["02:15+02", "02:45+02"]),
        ("15,45 2 * * *", "both", ["03:00+02"], ["02:15+02", "02:45+02", "02:15+01", "02:45+01"]),
        ("0 3 * * *", "cron", ["03:00+02"], ["03:00+01"]),
        ("0 */2 * * *", "cron", ["00:00+01", "04:00+02", "06:00+02"],
         ["00:00+02", "02:00+02", "02:00+01", "04:00+01", "06:00+01"]),
        ("0 */2 * * *", "shift", ["00:00+01", "04:00+02", "06:00+02"],
         ["00:00+02", "02:00+02", "02:00+01", "04:00+01", "06:00+01"]),
    ],
)  # fmt: skip
def test_berlin(expression: str, dst: str, spring: list[str], autumn: list[str]) -> None:
    """The design's table, on the two change days of 2027 in Berlin."""
    assert fired(expression, "Europe/Berlin", dst, BERLIN_SPRING, "2027-03-28T06:00") == spring
    assert fired(expression, "Europe/Berlin", dst, BERLIN_AUTUMN, "2027-10-31T06:00") == autumn


@pytest.mark.parametrize(
    ("expression", "spring", "autumn"),
    [
        ("0 2 * * *", ["03:00-04"], ["02:00-05"]),
        ("30 2 * * *", ["03:00-04"], ["02:30-05"]),
        ("30 1 * * *", ["01:30-05"], ["01:30-04"]),
    ],
)
def test_new_york(expression: str, spring: list[str], autumn: list[str]) -> None:
    """Fixed hours run exactly once on the change days in New York."""
    assert fired(expression, "America/New_York", "cron", NEW_YORK_SPRING, "2027-03-14T06:00") == spring
    assert fired(expression, "America/New_York", "cron", NEW_YORK_AUTUMN, "2027-11-07T06:00") == autumn


@pytest.mark.parametrize(("expression", "spring", "autumn"), [("*/15 * * * *", 21, 29), ("0 * * * *", 6, 8)])
@pytest.mark.parametrize("dst", MODES)
def test_stars_follow_real_time(expression: str, spring: int, autumn: int, dst: str) -> None:
    """A starred minute or hour counts real time, whatever the mode."""
    assert len(fired(expression, "Europe/Berlin", dst, BERLIN_SPRING, "2027-03-28T06:00")) == spring
    assert len(fired(expression, "Europe/Berlin", dst, BERLIN_AUTUMN, "2027-10-31T06:00")) == autumn


def test_lord_howe_moves_by_half_an_hour() -> None:
    """Half-hour changes: 01:45 runs once when the clock goes back, 02:15 moves to the end of the gap."""
    zone = "Australia/Lord_Howe"
    assert fired("45 1 * * *", zone, "cron", "2027-04-03T23:59", "2027-04-04T06:00") == ["01:45+11"]
    assert fired("45 1 * * *", zone, "both", "2027-04-03T23:59", "2027-04-04T06:00") == ["01:45+11", "01:45+10"]
    assert fired("15 2 * * *", zone, "cron", "2027-10-02T23:59", "2027-10-03T06:00") == ["02:30+11"]
    assert fired("15 2 * * *", zone, "shift", "2027-10-02T23:59", "2027-10-03T06:00") == ["02:45+11"]


def test_samoa_lost_a_day() -> None:
    """30 December 2011 did not exist in Samoa: `cron` runs its job as the 31st begins, `shift` a day later."""
    window = ("Pacific/Apia", "2011-12-29T12:00", "2011-12-31T23:59")
    assert fired("0 9 * * *", window[0], "cron", *window[1:]) == ["00:00+14", "09:00+14"]
    assert fired("0 9 * * *", window[0], "shift", *window[1:]) == ["09:00+14"]
    assert fired("0 9 * * *", window[0], "skip", *window[1:]) == ["09:00+14"]


def test_a_move_never_lands_on_a_day_off() -> None:
    """The 31st is a day off, so what the gap moves onto it does not run."""
    for dst in ("cron", "shift", "both"):
        schedule = parse_schedule("0 9 * * *", timezone="Pacific/Apia", dst=dst, anchor=0, calendar=("12-31",))
        begin = local("2011-12-29T12:00", "Pacific/Apia")
        assert preview(schedule, begin, 1)[0].local == "2012-01-01T09:00:00+14:00"
        assert schedule.latest_until(local("2011-12-31T23:00", "Pacific/Apia")) == local(
            "2011-12-29T09:00", "Pacific/Apia"
        )


def test_previews_say_what_the_clock_did() -> None:
    """A moved occurrence says from where; the times of a repeated hour say which they are."""
    spring = parse_schedule("30 2 * * *", timezone="Europe/Berlin", anchor=0)
    moved = preview(spring, local("2027-03-27T12:00", "Europe/Berlin"), 2)
    assert [seen.moved_by_dst for seen in moved] == [True, False]
    assert moved[0].note == "moved from 02:30: the clock jumps from 02:00 to 03:00"
    both = parse_schedule("30 2 * * *", timezone="Europe/Berlin", dst="both", anchor=0)
    autumn = preview(both, local("2027-10-30T12:00", "Europe/Berlin"), 3)
    assert [seen.note.partition(":")[0] for seen in autumn] == ["the first 02", "the second 02", ""]
    assert not any(seen.moved_by_dst for seen in autumn)


@pytest.mark.parametrize(
    ("dst", "at"), [("cron", "2027-03-28T01:00:00"), ("shift", "2027-03-28T01:30:00"), ("both", "2027-03-28T01:00:00")]
)
def test_once_in_the_gap(dst: str, at: str) -> None:
    """A single local time in the gap moves as the mode says."""
    schedule = parse_schedule("at 2027-03-28T02:30", timezone="Europe/Berlin", dst=dst, anchor=0)
    assert schedule.next_after(0) == parse_instant(at + "Z")
    [seen] = preview(schedule, 0, 2)
    assert (seen.moved_by_dst, seen.note) == (True, "moved from 02:30: the clock jumps from 02:00 to 03:00")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("at 2027-03-28T01:30", ""),
        ("at 2027-03-28T03:00", ""),
        ("at 2027-03-28T02:30:00+01:00", ""),
        ("2027-03-28T01:00:00Z", ""),
        ("at 2027-03-28T02:30:15.5", "moved from 02:30:15: the clock jumps from 02:00 to 03:00"),
        ("at 2027-10-31T02:30", "the first 02:30 of the day: the clock will be set back"),
    ],
)
def test_once_near_a_clock_change_says_what_it_did(text: str, note: str) -> None:
    """Only a local time is moved or repeated; an instant is what it is."""
    [seen] = preview(parse_schedule(text, timezone="Europe/Berlin", anchor=0), 0, 2)
    assert seen.note == note


def test_once_in_the_gap_is_refused_by_skip() -> None:
    """With `skip` a single time that does not exist is an error, with the next one that does."""
    with pytest.raises(ScheduleError, match="does not exist") as caught:
        parse_schedule("at 2027-03-28T02:30", timezone="Europe/Berlin", dst="skip", anchor=0)
    assert caught.value.example == "at 2027-03-28T03:00:00"


def test_once_in_the_repeated_hour_is_the_first_time() -> None:
    """A single local time runs once, the first time the clock shows it, in every mode."""
    for dst in MODES:
        schedule = parse_schedule("at 2027-10-31T02:30", timezone="Europe/Berlin", dst=dst, anchor=0)
        assert schedule.next_after(0) == parse_instant("2027-10-31T02:30:00+02:00")


def test_daily_recurrences_keep_the_local_time_and_elapsed_rates_do_not() -> None:
    """FREQ=DAILY and P1D stay at 09:00 over the change; `every 1d` and PT24H move by the hour."""
    begin = parse_instant("2027-03-27T09:00:00+01:00")
    kept = begin + DAY - 3600 * SECOND
    for text in ("RRULE:FREQ=DAILY", "R/2027-03-27T09:00/P1D"):
        schedule = parse_schedule(text, timezone="Europe/Berlin", anchor=begin)
        assert schedule.next_after(begin) == kept, text
    for text in ("every 1d from 2027-03-27T09:00", "R/2027-03-27T09:00/PT24H", "RRULE:FREQ=HOURLY;INTERVAL=24"):
        schedule = parse_schedule(text, timezone="Europe/Berlin", anchor=begin)
        assert schedule.next_after(begin) == begin + DAY, text


# The oracle: every minute of three days, once by UTC and once by the wall clock. It knows nothing of stretches: a
# wall time is in a gap when its way to UTC and back does not return, repeated when its two folds differ (PEP 495).


@lru_cache(maxsize=32)
def by_utc(zone: str, day: str) -> list[tuple[int, datetime]]:
    """(instant, naive wall time) of every half minute of UTC around the day: Liberia was 44:30 behind."""
    noon = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC)
    moments = (noon + timedelta(seconds=30 * half) for half in range(-3 * 1440, 3 * 1440))
    return [
        (round(moment.timestamp()) * SECOND, moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None))
        for moment in moments
    ]


@lru_cache(maxsize=32)
def by_wall(zone: str, day: str) -> list[tuple[datetime, int, int | None, int]]:
    """(naive wall time, first instant, second instant, end of its gap or -1) of every minute of the clock."""
    info = ZoneInfo(zone)
    noon = datetime.fromisoformat(day) + timedelta(hours=12)
    rows = []
    for offset in range(-5 * 720, 5 * 720):
        wall = noon + timedelta(minutes=offset)
        first, second = wall.replace(tzinfo=info), wall.replace(tzinfo=info, fold=1)
        early, late = round(first.timestamp()) * SECOND, round(second.timestamp()) * SECOND
        back = datetime.fromtimestamp(early / SECOND, info).replace(tzinfo=None)
        if back != wall:
            rows.append((wall, early, None, gap_end(wall, info)))
        else:
            rows.append((wall, early, late if late != early else None, -1))
    return rows


def gap_end(wall: datetime, info: ZoneInfo) -> int:
    """By seconds: where the clock exists again."""
    step = timedelta(hours=1)
    while step:
        later = wall + step
        exists = datetime.fromtimestamp(later.replace(tzinfo=info).timestamp(), info).replace(tzinfo=None) == later
        if exists and step == timedelta(seconds=1):
            return round(later.replace(tzinfo=info).timestamp()) * SECOND
        if exists:
            step = timedelta(minutes=1) if step == timedelta(hours=1) else timedelta(seconds=1)
        else:
            wall = later
    raise AssertionError


def expected(expression: str, zone: str, day: str, dst: str) -> list[int]:
    """The instants at which the expression fires around the day, by scanning."""
    cron = CronSim(expression, datetime.fromisoformat("2000-01-01"))  # for its reading of the fields only
    minute, hour = expression.split()[:2]

    days = {wall.date() for wall, *_ in by_wall(zone, day)}
    days = {item for item in days if cron.match_day(item) and item.month in cron.months}

    def fits(wall: datetime) -> bool:
        return wall.minute in cron.minutes and wall.hour in cron.hours and wall.date() in days

    if minute.startswith("*") or hour.startswith("*"):
        return [at for at, wall in by_utc(zone, day) if wall.second == 0 and fits(wall)]
    found: set[int] = set()
    for wall, first, second, end in by_wall(zone, day):
        if not fits(wall):
            continue
        if end >= 0:
            found.update({"cron": [end], "both": [end], "shift": [first], "skip": []}[dst])
        else:
            found.add(first)
            if second is not None and dst == "both":
                found.add(second)
    edges = by_utc(zone, day)
    return sorted(at for at in found if edges[0][0] <= at <= edges[-1][0])


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    ranges = st.tuples(value, value).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(value, st.integers(1, high - low + 1)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    items = st.one_of(value.map(str), ranges, steps)
    return st.lists(items, min_size=1, max_size=2).map(",".join)


expressions = st.tuples(
    st.one_of(fields(0, 59), st.sampled_from(["*", "*/7", "0", "30", "15,45"])),
    st.one_of(fields(0, 23), fields(0, 4), st.sampled_from(["*", "*/2", "1", "2", "0,23"])),
    st.one_of(st.just("*"), fields(1, 31), st.just("L")),
    st.just("*"),
    st.one_of(st.just("*"), fields(0, 6)),
).map(" ".join)


@pytest.mark.parametrize(("zone", "day"), CHANGES)
@given(expression=expressions, dst=st.sampled_from(MODES))
@example(expression="30 2 * * *", dst="shift")
@example(expression="15,45 1-3 * * *", dst="both")
@example(expression="0,15,30,45 0-23 * * *", dst="shift")
@settings(max_examples=40, deadline=None)
def test_every_mode_agrees_with_a_scan(zone: str, day: str, expression: str, dst: str) -> None:
    """Forwards and backwards, the schedule fires exactly where a scan of all minutes says."""
    schedule = parse_schedule(expression, timezone=zone, dst=dst, anchor=0)
    edges = by_utc(zone, day)
    begin, end = edges[0][0], edges[-1][0]
    truth = expected(expression, zone, day, dst)
    forwards = schedule.between(begin - 1, end, 10_000)
    assert forwards == truth, [format_instant(at) for at in sorted(set(forwards) ^ set(truth))[:5]]
    backwards = []
    at = schedule.latest_until(end)
    while at is not None and at >= begin:
        backwards.append(at)
        at = schedule.latest_until(at - 1)
    assert backwards[::-1] == truth


@pytest.mark.parametrize(("zone", "day"), CHANGES)
@pytest.mark.parametrize("dst", MODES)
def test_any_instant_has_the_right_neighbours(zone: str, day: str, dst: str) -> None:
    """Asked between occurrences, at them and inside the repeated hour, the answers are the scan's neighbours."""
    expression = "7,30 0-23 * * *"
    schedule = parse_schedule(expression, timezone=zone, dst=dst, anchor=0)
    truth = expected(expression, zone, day, dst)
    index = 0
    for at, _ in by_utc(zone, day)[200:8400:10]:
        while truth[index] <= at:
            index += 1
        assert schedule.next_after(at) == truth[index]
        assert schedule.latest_until(at) == truth[index - 1]
        assert schedule.next_after(truth[index] - 1) == truth[index]
        assert schedule.latest_until(truth[index] + MINUTE // 2 - 1) == truth[index]


def test_seconds_move_with_their_minute() -> None:
    """Six fields: seconds inside the gap are shifted as they are; `cron` runs them once."""
    begin = local("2027-03-28T01:59:59", "Europe/Berlin")
    shift = parse_schedule("10,20 59 2 * * *", timezone="Europe/Berlin", dst="shift", anchor=0)
    assert [seen.local[11:19] for seen in preview(shift, begin, 2)] == ["03:59:10", "03:59:20"]
    once = parse_schedule("10,20 59 2 * * *", timezone="Europe/Berlin", anchor=0)
    assert [seen.local[8:19] for seen in preview(once, begin, 2)] == ["28T03:00:00", "29T02:59:10"]
