"""`duly bench`: what it prints is what it measured, in a shape that programs can read."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from duly.bench.measure import lateness_figures, quantiles
from duly.telemetry import LatenessSketch


def test_a_quick_run_prints_figures_as_json() -> None:
    """The rows that were asked for, each with a value and its unit, and the machine."""
    command = [sys.executable, "-m", "duly.cli", "bench", "--quick", "--json", "--only", "recovery", "--only", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    document = msgspec.json.decode(done.stdout)
    assert document["machine"]["cores"] >= 1
    names = [figure["name"] for figure in document["figures"]]
    assert "memory, server, empty" in names
    assert "memory, server, 100,000 jobs stored" in names
    assert names[0] == "recovery after killed function processes"
    assert all(figure["value"] > 0 for figure in document["figures"])


def test_a_row_that_does_not_exist_is_refused() -> None:
    """With those that do."""
    command = [sys.executable, "-m", "duly.cli", "bench", "--only", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "throughput" in done.stderr


def test_quantiles_count_the_early_ones() -> None:
    """In ms, from µs; a start before its instant is never hidden."""
    found = quantiles([-1, *range(99)])
    assert (found.early, found.count, found.largest) == (1, 100, 0.098)
    assert [figure.value for figure in lateness_figures("x", [5, -5])][-1] == 1


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_the_sketch_is_within_ten_percent(share: float) -> None:
    """Its quantiles against the exact ones, and nothing but counts in memory."""
    values = [round(1.01**n) for n in range(1, 1600)]
    sketch = LatenessSketch()
    sketch.add(values)
    exact = sorted(values)[int(len(values) * share)]
    found = sketch.quantile(share)
    assert found is not None
    assert abs(found - exact) <= 0.12 * exact + 1


@pytest.mark.timeout(120)
def test_a_cluster_is_measured_as_well() -> None:
    """Real servers and processes, started and ended by the command."""
    command = [sys.executable, "-m", "duly.cli", "bench", "--cluster", "--quick", "--json", "--only", "ready"]
    done = subprocess.run([*command, "--only", "memory"], capture_output=True, text=True, timeout=100, check=True)
    document = msgspec.json.decode(done.stdout)
    assert document["cluster"] is True
    names = [figure["name"] for figure in document["figures"]]
    assert names[0] == "duly cluster, empty directory, to ready"
    assert {"memory, servicer-0", "memory, scheduler-1", "memory, worker-1"} <= set(names)
