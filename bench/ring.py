"""Balance and movement of the ring: python bench/ring.py [--trials N]

balance    the fullest shard over its fair share (1.0 is even; the target is 1.1 at 16 shards)
movement   slots that change shards when one joins or leaves, over that shard's fair share (the target is 1.2)
lookup     µs to find the shard of a job          place      ms to make a ring
"""

from __future__ import annotations

import argparse
import random
import time

from duly.core.model import JobId
from duly.core.ring import SLOTS, moves, place

SIZES = (2, 3, 4, 8, 16, 32)


def trial(dice: random.Random, size: int, weighted: bool) -> tuple[float, float, float]:
    """Worst balance, and the movement when one of the shards leaves, and when it joins."""
    weights = {f"shard-{dice.randrange(10**9)}": dice.uniform(0.5, 2.0) if weighted else 1.0 for _ in range(size)}
    ring = place(weights)
    total = sum(weights.values())
    balance = max(len(ring.slots_of(name)) / (SLOTS * weight / total) for name, weight in weights.items())
    one = dice.choice(sorted(weights))
    without = place({name: weight for name, weight in weights.items() if name != one})
    share = SLOTS * weights[one] / total
    return balance, len(moves(ring, without)) / share, len(moves(without, ring)) / share


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=10)
    trials = parser.parse_args().trials
    dice = random.Random(1)
    print(f"{'shards':>6} {'weights':>9} {'balance':>15} {'leaves':>15} {'joins':>15}   (mean, worst of {trials})")
    for size in SIZES:
        for weighted in (False, True):
            found = list(zip(*(trial(dice, size, weighted) for _ in range(trials)), strict=True))
            cells = [f"{sum(column) / trials:7.3f} {max(column):7.3f}" for column in found]
            print(f"{size:>6} {'0.5 to 2' if weighted else 'alike':>9} {'  '.join(cells)}")
    started = time.perf_counter()
    ring = place(dict.fromkeys(map(str, range(16)), 1.0))
    made = time.perf_counter()
    for i in range(100_000):
        ring.shard_of(JobId(f"0198f0a0-0000-7000-8000-{i:012x}"))
    looked = time.perf_counter()
    print(f"place, 16 shards: {(made - started) * 1e3:.0f} ms; lookup: {(looked - made) * 10:.2f} µs")


if __name__ == "__main__":
    main()
