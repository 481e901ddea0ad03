"""A year of every kind of schedule in five zones and every mode, against a scan of its minutes."""

from __future__ import annotations

import pytest

from core.year import KINDS, MODES, YEARS, Kind, compare
from duly.core.instants import format_instant

SPARSE = [kind for kind in KINDS if kind.wall is not None or kind.rate >= 7 * 3_600_000_000]
DENSE = [kind for kind in KINDS if kind not in SPARSE]


@pytest.mark.parametrize(("zone", "year"), YEARS)
@pytest.mark.parametrize("kind", SPARSE, ids=lambda kind: kind.text)
def test_a_year_of_wall_times(kind: Kind, zone: str, year: int) -> None:
    """It fires where the scan says, in each mode; forwards, and backwards from the end."""
    for mode in MODES:
        count, wrong = compare(kind, zone, year, mode)
        assert not wrong, (mode, [format_instant(instant) for instant in wrong[:5]])
        assert count >= 10


@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.text)
def test_a_year_of_real_time(kind: Kind) -> None:
    """Where clocks move by half an hour; the other zones and modes are `tests/soak/dst_year.py`."""
    count, wrong = compare(kind, "Australia/Lord_Howe", 2027, "cron")
    assert not wrong, [format_instant(instant) for instant in wrong[:5]]
    assert count > 1_000
