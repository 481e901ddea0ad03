"""Whatever dies in a cluster, nothing that was acknowledged is lost, no run completes twice, and work goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.scenario import under_faults


@pytest.mark.timeout(240)
def test_nothing_is_lost_or_done_twice_whatever_dies(tmp_path: Path) -> None:
    """SIGKILL of one of each role and of the broker, a shard stopped and started, a scheduler and a worker frozen."""
    report = under_faults(tmp_path)
    print(report.line())  # noqa: T201 - shown with -rP
    assert report.clean, (report.lost[:5], report.extra[:5], report.double[:5], report.missing[:5])
    assert report.owed > 100
