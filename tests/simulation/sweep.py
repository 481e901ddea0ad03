"""Many seeds, summed up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from simulation.world import Outcome, simulate

HAPPENED = (
    "firings",
    "starts again",
    "redispatches",
    "retries",
    "crashed attempts",
    "handed back",
    "terms",
    "terms refused",
    "workers lost",
    "attempts that were not there",
    "lost races",
    "misfires started",
    "owed",
    "cancels acknowledged",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
    "missed",
    "lost",
    "quarantined",
)
INJECTED = (
    "kills",
    "freezes",
    "partitions",
    "store outages",
    "clock steps of nodes",
    "clock steps of the store",
    "shards down for long",
    "broker outages",
    "hosts cut off from one shard",
    "leaders held up in mid-write",
    "all schedulers killed at once",
    "all workers killed at once",
    "all servicers killed at once",
    "workers killed by tasks",
    "messages lost",
    "messages doubled",
    "messages late",
    "messages cut off",
    "messages lost with the broker",
    "store calls refused",
    "store calls late",
    "store outcomes unknown, done",
    "store outcomes unknown, not done",
)
RARE = ("refused: fenced",)  # not in every few dozen seeds


class Sweep(msgspec.Struct):
    """What many worlds came to. `cpu` in seconds, `hours` simulated."""

    seeds: int
    hours: float
    cpu: float
    shapes: dict[str, int]
    counts: dict[str, int]
    faults: dict[str, int]
    violations: list[Outcome]

    def missing(self) -> list[str]:
        """What should have happened somewhere and did not, so that nothing was proved about it."""
        return never_happened(self.counts, self.faults)


def never_happened(counts: Mapping[str, int], faults: Mapping[str, int], rare: Sequence[str] = ()) -> list[str]:
    """What did not happen, of all that should."""
    return [name for name in HAPPENED if not counts.get(name)] + [
        name for name in (*INJECTED, *rare) if not faults.get(name)
    ]


def sweep(seeds: Iterable[int]) -> Sweep:
    """Run the world of each seed."""
    begun = time.process_time()
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    violations = []
    micros = number = 0
    for seed in seeds:
        outcome = simulate(seed)
        number += 1
        micros += outcome.micros
        shapes[outcome.shape] += 1
        counts.update(outcome.counts)
        faults.update(outcome.faults)
        if outcome.violation is not None:
            violations.append(outcome)
    spent = time.process_time() - begun
    return Sweep(number, micros / 3.6e9, spent, dict(shapes), dict(counts), dict(faults), violations)
