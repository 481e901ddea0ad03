"""Faults of a real cluster, many times over: `python tests/soak/cluster_faults.py [passes] [seed]`; 1 on any loss."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cluster.scenario import under_faults


def main() -> int:
    """Each pass is every fault once, in an order that the seed makes."""
    passes = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory(prefix="duly-faults-") as folder:
        report = under_faults(Path(folder), seed=seed, passes=passes)
    sys.stdout.write(f"{passes} passes of every fault: {report.line()}\n")
    for name in ("lost", "extra", "double", "missing"):
        for found in getattr(report, name):
            sys.stdout.write(f"{name}: {found}\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
