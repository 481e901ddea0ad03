"""`duly up` under load is killed again and again: nothing owed is lost, nothing runs that is not owed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from duly.core.instants import SECOND, format_instant
from system.rounds import Report, check_ticker, crash_rounds

T0 = 1_800_000_000 * SECOND


@pytest.mark.timeout(120)
def test_three_crash_rounds(tmp_path: Path) -> None:
    """Three kills; twenty are `tests/soak/crash_rounds.py`."""
    report = crash_rounds(tmp_path, 3, seed=20271128, longest=1.5)
    assert report.rounds == 3
    assert report.owed > 0
    assert report.clean, (report.line(), report.lost[:5], report.extra[:5], report.double[:5], report.missing[:5])


def ticks(**states: str) -> list[dict[str, Any]]:
    """Runs at whole seconds after T0, `_2=...` at the second second."""
    return [
        {
            "id": f"r{second[1:]}",
            "scheduled_at": format_instant(T0 + int(second[1:]) * SECOND),
            "covers_until": None,
            "state": state,
            "attempt": 1,
            "reason": None,
            "error": None,
        }
        for second, state in states.items()
    ]


def judged(name: str, runs: list[dict[str, Any]], **seen: list[int]) -> tuple[int, int, int]:
    """What the checker finds over three seconds: (lost, extra, double)."""
    report = Report(seed=0)
    check_ticker(name, runs, {run["id"]: seen.get(run["id"], [1]) for run in runs}, T0 + 2 * SECOND, report)
    return len(report.lost), len(report.extra), len(report.double)


def test_the_checker_sees_what_it_is_for() -> None:
    """A gap, a run without a mark, a miss that the policy forbids, a run that nobody owes, one that ran twice."""
    good = ticks(_0="succeeded", _1="succeeded", _2="succeeded")
    assert judged("function, all", good) == (0, 0, 0)
    assert judged("function, all", [good[0], good[2]]) == (1, 0, 0)
    assert judged("function, all", good, r1=[]) == (1, 0, 0)
    assert judged("function, all", ticks(_0="succeeded", _1="missed", _2="succeeded"), r1=[]) == (1, 0, 0)
    assert judged("function, latest", ticks(_0="succeeded", _1="missed", _2="succeeded"), r1=[]) == (0, 0, 0)
    assert judged("function, latest", ticks(_0="succeeded", _1="missed", _2="succeeded")) == (0, 1, 0)
    stray = ticks(_0="succeeded")[0] | {"id": "x", "scheduled_at": format_instant(T0 + SECOND // 2)}
    assert judged("function, all", [*good, stray]) == (0, 1, 0)
    assert judged("function, at most once", good, r2=[1, 2]) == (0, 0, 1)
