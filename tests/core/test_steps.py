"""Steps of a clock, noticed by readings of it between two of a clock that never steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duly.core.instants import DAY, HOUR, MILLISECOND, SECOND
from duly.core.steps import TOLERANCE, ClockSteps

T0 = 1_800_000_000_000_000


def test_a_forward_step_is_told_with_what_it_jumped_over() -> None:
    """The instants between the last reading and the first after the step; none before, none after."""
    steps = ClockSteps()
    assert steps.see(0, T0, 10) == 0
    assert steps.see(SECOND, T0 + SECOND, SECOND + 10) == 0
    assert abs(steps.see(2 * SECOND, T0 + 2 * SECOND + HOUR, 2 * SECOND + 10) - HOUR) <= 20
    assert steps.jumped_over(T0 + 30 * 60 * SECOND)
    assert not steps.jumped_over(T0 + SECOND)
    assert not steps.jumped_over(T0 + HOUR + 2 * SECOND + 1)


def test_a_backward_step_jumps_over_nothing() -> None:
    """It is told as negative."""
    steps = ClockSteps()
    steps.see(0, T0, 10)
    assert abs(steps.see(SECOND, T0 + SECOND - DAY, SECOND + 10) + DAY) <= 20
    assert not steps.jumped_over(T0 - HOUR)


def test_a_slow_answer_is_no_step() -> None:
    """Ten seconds between asking and hearing leave open when the clock was read."""
    steps = ClockSteps()
    steps.see(0, T0, 10)
    assert steps.see(SECOND, T0 + SECOND, 11 * SECOND) == 0
    assert steps.see(12 * SECOND, T0 + 12 * SECOND, 12 * SECOND + 10) == 0


@given(st.lists(st.tuples(st.integers(0, DAY), st.integers(0, SECOND), st.integers(0, SECOND)), max_size=30))
def test_a_clock_that_is_not_set_never_steps(readings: list[tuple[int, int, int]]) -> None:
    """However the readings fall."""
    steps, at = ClockSteps(), 0
    for pause, way, back in readings:
        at += pause
        assert steps.see(at, T0 + at + way, at + way + back) == 0
        at += way + back


@given(st.integers(-DAY, DAY), st.integers(0, 50 * MILLISECOND), st.integers(0, 50 * MILLISECOND))
def test_a_step_beyond_the_doubt_is_seen(size: int, way: int, back: int) -> None:
    """With its sign, and never larger than it was."""
    steps = ClockSteps()
    steps.see(0, T0 + way, way + back)
    seen = steps.see(SECOND, T0 + SECOND + size + way, SECOND + way + back)
    if abs(size) > TOLERANCE + 2 * (way + back):
        assert seen * size > 0
    assert abs(seen) <= abs(size)
