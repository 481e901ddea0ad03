"""The interface of a contestant, and the five workloads over it. Runs in the contestant's own Python."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

from contestants import bodies

SECOND = 1_000_000
WORKERS = 2  # processes that run tasks, wherever the notion exists
PATIENCE = 60.0  # seconds for what should have happened already
LEAD = 6 * SECOND  # between the start of scheduling ahead and the first instant, at least
WARM = 2_000  # jobs of the first try at a rate
PACED = 200  # jobs that tell how fast scheduling is
SCHEDULING = 15.0  # seconds that scheduling a backlog may take
MOST = 200_000  # jobs measured at most


class Plan(TypedDict):
    """How much of each workload."""

    rate_seconds: float  # about how long a rate is measured, and half of it at least
    lateness_seconds: int
    per_second: int
    burst: int
    drain: int  # jobs at most
    tick_seconds: int


class NotOffered(Exception):
    """The contestant cannot do this; the text says why."""


class Contestant(ABC):
    """One scheduler or queue. `open` comes first, `close` last; the rest as the workload needs it."""

    packages: ClassVar[tuple[str, ...]]  # whose versions are told
    # what is known of a tick's due time: told by the framework; a whole second; or one period after the first
    grid: ClassVar[str] = "told"

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def open(self) -> None:
        """Make the schema, connect."""

    @abstractmethod
    def start_workers(self, *, ticks: bool = False) -> None:
        """Start WORKERS workers; with `ticks` also what makes an every-second job."""

    @abstractmethod
    def enqueue(self, count: int) -> None:
        """No-op jobs for now, by the fastest documented call; returns when they are acknowledged."""

    def enqueue_only(self, count: int) -> None:
        """The same, where nothing works on them meanwhile."""
        self.enqueue(count)

    @abstractmethod
    def schedule(self, dues: Sequence[int]) -> None:
        """One job of `bodies.stamp(due)` at each instant, in µs."""

    @abstractmethod
    def stored(self) -> int:
        """How many outcomes are in the contestant's own store."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Workers are ended by `run`."""

    def warm_up(self, count: int) -> None:
        """Workers are up when they have done something."""
        done = self.stored()
        self.enqueue(count)
        wait_stored(self, done + count, time.monotonic())

    def worker(self, *command: str, **environment: str) -> None:
        """Start a process, its output kept for `run` to show when something fails."""
        log = os.open(
            Path(os.environ["VERSUS_DIR"]) / f"worker-{len(self.processes)}.log",
            os.O_CREAT | os.O_WRONLY | os.O_APPEND,
        )
        self.processes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True)
        )
        os.close(log)

    def check_workers(self) -> None:
        """Raises when one has ended by itself."""
        for process in self.processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with status {process.returncode}")

    def end_workers(self) -> None:
        """SIGTERM, and SIGKILL for whatever stays: each is a process group that was started here."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def wait_stored(contestant: Contestant, count: int, since: float) -> float:
    """Until so many outcomes are stored; returns when. Asks the less often, the more there is to do."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found, now = contestant.stored(), time.monotonic()
        if found >= count:
            return now
        contestant.check_workers()
        if now > deadline:
            raise RuntimeError(f"only {found} of {count} outcomes were stored in {PATIENCE:.0f} s")
        left = (now - since) * (count - found) / max(found, 1)
        time.sleep(min(max(left / 3, 0.01), 0.5))


def quantiles(late: Sequence[int]) -> dict[str, float]:
    """Of lateness in µs: p50, p99 and max in ms, how many were early, and by how much at most."""
    ordered = sorted(late)
    if not ordered:
        raise RuntimeError("no task told its start")
    return {
        "p50_ms": ordered[len(ordered) // 2] / 1000,
        "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1000,
        "max_ms": ordered[-1] / 1000,
        "early": sum(value < 0 for value in ordered),
        "most_early_ms": max(0, -ordered[0]) / 1000,
        "count": len(ordered),
    }


def sized(measured: Callable[[int], float], plan: Plan) -> tuple[int, float]:
    """Measure with more and more jobs until it takes long enough to be a rate; the last is the answer."""
    count = WARM
    while True:
        spent = measured(count)
        if spent > plan["rate_seconds"] / 2 or count == MOST:
            return count, spent
        count = min(int(count * min(max(plan["rate_seconds"] / spent, 2), 20)), MOST)


def enqueue(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """Jobs per second taken in, with no worker at work on them."""

    def measured(count: int) -> float:
        started = time.monotonic()
        contestant.enqueue_only(count)
        return time.monotonic() - started

    count, spent = sized(measured, plan)
    return {"per_second": count / spent, "count": count}


def throughput(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """From the first enqueue to the last outcome stored, workers up and warm."""
    contestant.start_workers()
    contestant.warm_up(100)

    def measured(count: int) -> float:
        done = contestant.stored()
        started = time.monotonic()
        contestant.enqueue(count)
        return wait_stored(contestant, done + count, started) - started

    count, spent = sized(measured, plan)
    return {"per_second": count / spent, "count": count}


def scheduling_pace(contestant: Contestant) -> float:
    """Workers up and warm; then seconds for scheduling one job, by some that are due soon."""
    contestant.start_workers()
    contestant.warm_up(500)
    done = stored_if_any(contestant)
    started = time.monotonic()
    contestant.schedule([time.time_ns() // 1000 + SECOND] * PACED)
    pace = (time.monotonic() - started) / PACED
    if done is not None:
        wait_stored(contestant, done + PACED, started)
    return pace


def drain(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """Jobs due at one instant, from then to the last outcome stored: running alone, without enqueueing."""
    pace = scheduling_pace(contestant)
    count = max(min(plan["drain"], int(SCHEDULING / pace)), PACED)
    done = contestant.stored()
    due = round((time.time() + pace * count * 1.5 + 3) * SECOND)
    contestant.schedule([due] * count)
    until(due, f"scheduling {count} jobs")
    started = time.monotonic()
    spent = wait_stored(contestant, done + count, started) - started
    return {"per_second": count / spent, "count": count}


def until(instant: int, what: str) -> None:
    """Sleep; RuntimeError when it is past."""
    slack = instant / SECOND - time.time()
    if slack < 0:
        raise RuntimeError(f"{what} took {-slack:.1f} s longer than the lead")
    time.sleep(slack)


def stored_if_any(contestant: Contestant) -> int | None:
    """None where no outcomes are kept."""
    try:
        return contestant.stored()
    except NotOffered:
        return None


def ahead(contestant: Contestant, offsets: Sequence[int]) -> dict[str, float]:
    """Schedule stamps ahead of time and see when they began."""
    pace = scheduling_pace(contestant)
    done = stored_if_any(contestant)
    lead = max(LEAD, round((pace * len(offsets) * 2 + 3) * SECOND))
    first = (time.time_ns() // 1000 + lead) // SECOND * SECOND + SECOND // 3  # not where pollers have their beat
    contestant.schedule([first + offset for offset in offsets])
    until(first, f"scheduling {len(offsets)} jobs")
    time.sleep(offsets[-1] / SECOND)
    if done is not None:
        wait_stored(contestant, done + len(offsets), time.monotonic())
    else:  # no outcomes are kept: wait for the starts alone
        deadline = time.monotonic() + PATIENCE
        while sum(due >= first for due, _ in bodies.read_notes()) < len(offsets) and time.monotonic() < deadline:
            time.sleep(0.05)
    late = [began - due for due, began in bodies.read_notes() if due >= first]
    if len(late) != len(offsets):
        raise RuntimeError(f"{len(late)} starts were told of {len(offsets)} jobs")
    return {**quantiles(late), "outcomes_stored": done is not None}


def lateness(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """One-time jobs at a steady rate."""
    period = SECOND // plan["per_second"]
    return ahead(contestant, [index * period for index in range(plan["per_second"] * plan["lateness_seconds"])])


def burst(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """Jobs that are all due at one instant."""
    return ahead(contestant, [0] * plan["burst"])


def ticks(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """An every-second job: which ticks came, and when."""
    contestant.start_workers(ticks=True)
    deadline = time.monotonic() + PATIENCE
    while not any(True for _ in bodies.read_notes()):
        contestant.check_workers()
        if time.monotonic() > deadline:
            raise RuntimeError("no tick came")
        time.sleep(0.05)
    time.sleep(2)  # what starts up is no tick late
    opened = time.time_ns() // 1000
    time.sleep(plan["tick_seconds"] + 2.5)
    begun = sorted((began, due) for due, began in bodies.read_notes() if began >= opened)
    if contestant.grid == "second":
        pairs = [((began + SECOND // 20) // SECOND * SECOND, began) for began, _ in begun]
    elif contestant.grid == "interval":
        origin = begun[0][0]
        pairs = [(origin + (began - origin + SECOND // 20) // SECOND * SECOND, began) for began, _ in begun]
    else:
        pairs = [(due, began) for began, due in begun]
    first = min(due for due, _ in pairs)
    window = range(first, first + plan["tick_seconds"] * SECOND, SECOND)
    inside = [(due, began) for due, began in pairs if due in window]
    seen = {due for due, _ in inside}
    return {
        **quantiles([began - due for due, began in inside]),
        "ticks": len(window),
        "skipped": len(window) - len(seen),
        "twice": len(inside) - len(seen),
    }


WORKLOADS = {
    "enqueue": enqueue,
    "throughput": throughput,
    "drain": drain,
    "lateness": lateness,
    "burst": burst,
    "ticks": ticks,
}


def main(contestant: Contestant) -> None:
    """`python -m contestants.NAME WORKLOAD PLAN`: one measurement, as JSON in the last line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that workers are ended, too
    name, plan = sys.argv[1], json.loads(sys.argv[2])
    answer: dict[str, object] = {
        "versions": {package: importlib.metadata.version(package) for package in contestant.packages}
    }
    try:
        contestant.open()
        try:
            answer["figures"] = WORKLOADS[name](contestant, plan)
        finally:
            contestant.end_workers()
            contestant.close()
    except NotOffered as reason:
        answer["not_offered"] = str(reason)
    print(json.dumps(answer), flush=True)
