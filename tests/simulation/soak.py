"""The simulation for as long as you like: thousands of seeds, then every mutant, and a report.

    python tests/simulation/soak.py --hours 1000 [--first SEED] [--workers N] [--no-mutants]

`--hours` are simulated hours. Exit status 1 if an invariant was broken or a mutant survived; seeds are printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from simulation.mutants import MUTANTS, hunt
from simulation.sweep import RARE, Sweep, never_happened, sweep

BATCH = 25
SEED_HOURS = 235 / 3600  # what one seed simulates, about


def main() -> int:
    """Run, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--first", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-mutants", action="store_true")
    options = parser.parse_args()
    seeds = max(BATCH, round(options.hours / SEED_HOURS))
    starts = range(options.first, options.first + seeds, BATCH)
    begun = time.perf_counter()
    survivors = 0
    with ProcessPoolExecutor(options.workers) as pool:
        broken = report(list(pool.map(_batch, starts)), time.perf_counter() - begun)
        if not options.no_mutants:
            catches = list(pool.map(hunt, MUTANTS))
            survivors = sum(catch.caught is None for catch in catches)
            say(f"\nmutants caught: {len(catches) - survivors}/{len(catches)}")
            for catch in catches:
                how = "SURVIVED" if catch.caught is None else f"{catch.caught[0]:2}  {catch.caught[1]}"
                say(f"  {catch.mutant:34} {catch.seeds:3} seeds  {catch.shape:6} {how}")
    return int(bool(broken or survivors))


def _batch(first: int) -> Sweep:
    return sweep(range(first, first + BATCH))


def report(parts: list[Sweep], wall: float) -> int:
    """Print what the sweeps came to; returns how much is wrong."""
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
        faults.update(part.faults)
    hours, cpu = sum(part.hours for part in parts), sum(part.cpu for part in parts)
    broken = [outcome for part in parts for outcome in part.violations]
    say(f"{sum(part.seeds for part in parts)} seeds, {hours:.1f} simulated hours, {cpu:.0f} CPU s, {wall:.0f} s")
    shapes: Counter[str] = Counter()
    for part in parts:
        shapes.update(part.shapes)
    say("worlds: " + ", ".join(f"{number} {shape}" for shape, number in shapes.most_common()))
    say(f"simulated hours per CPU second: {hours / cpu:.3f}")
    for title, numbers in (("faults", faults), ("what happened", counts)):
        say(f"\n{title}")
        for name, number in sorted(numbers.items(), key=lambda item: -item[1]):
            say(f"  {name:44} {number:>10,}")
    missing = never_happened(counts, faults, RARE)
    say(f"\nnever happened: {', '.join(missing) or 'none of what should'}")
    say(f"violations: {len(broken)}")
    for outcome in broken:
        say(f"  seed {outcome.seed}: {outcome.violation and outcome.violation[2]}")
    return len(broken) + len(missing)


def say(line: str) -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
