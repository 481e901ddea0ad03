"""Every kind of schedule, zone, year and mode against a scan of the year's minutes: `python tests/soak/dst_year.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from core.year import KINDS, MODES, YEARS, compare
from duly.core.instants import format_instant


def main() -> int:
    """Prints, for each zone, how many occurrences were compared and how many differ."""
    wrong_in_all = 0
    for zone, year in YEARS:
        total, wrong_here = 0, 0
        for kind in KINDS:
            for mode in MODES:
                count, wrong = compare(kind, zone, year, mode)
                total += count
                wrong_here += len(wrong)
                if wrong:
                    examples = ", ".join(format_instant(instant) for instant in wrong[:3])
                    sys.stdout.write(f"differs: {kind.text} in {zone} ({mode}): {examples}\n")
        sys.stdout.write(f"clock changes: {zone} {year}: {total:,} occurrences, {wrong_here} differ\n")
        wrong_in_all += wrong_here
    return 1 if wrong_in_all else 0


if __name__ == "__main__":
    sys.exit(main())
