"""Crash rounds, printed: `python tests/soak/crash_rounds.py [rounds] [seed] [shards]`; exits with 1 on any loss."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from system.rounds import crash_rounds


def main() -> int:
    """The seed makes the moments of the kills and the writes; what is under way at them is up to the machine."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20271128
    shards = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    with tempfile.TemporaryDirectory(prefix="duly-rounds-") as folder:
        report = crash_rounds(Path(folder), rounds, seed, shards=shards)
    sys.stdout.write(f"killed after {report.killed_at} s\n{report.line()}\n")
    for name in ("lost", "extra", "double", "missing"):
        for found in getattr(report, name):
            sys.stdout.write(f"{name}: {found}\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
