"""Where the CPU of a run goes: the event loop's thread sampled under load, the other threads and processes counted.

A timer of CPU time interrupts the event loop's thread; the CPU that this thread used since the last interruption is
put down to the stack that is found. So the stages of that thread add up to its CPU, and to nothing that it waited for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

INTERVAL: Final = 0.001  # seconds of CPU between samples
DEPTH: Final = 60

# The innermost frame that is named here decides; (file, function) before file.
STAGES: Final[dict[tuple[str, str], str]] = {
    ("scheduler.py", "_refill"): "stage: read what is due",
    ("scheduler.py", "_turn"): "dispatch: pick",
    ("scheduler.py", "_hinted"): "dispatch: hear of ends",
    ("scheduler.py", "_dispatch"): "dispatch: decide, assign",
    ("servicer.py", ""): "create",
    ("jobs.py", ""): "create",
    ("worker.py", ""): "start: worker",
    ("attempts.py", ""): "start: worker",
    ("function.py", ""): "start: worker",
    ("pool.py", ""): "start: pipes",
    ("seat.py", ""): "start: pipes",
    ("reporter.py", ""): "report: gather",
    ("reports.py", "_decide"): "report: load, decide",
    ("reports.py", "_commit"): "report: commit",
    ("reports.py", "_tell"): "report: tell",
    ("reports.py", "take"): "report: load, decide",
    ("measure.py", ""): "(the benchmark itself)",
}


class Profile:
    """CPU seconds by stack of the event loop's thread, by name of other threads, and of child processes."""

    def __init__(self) -> None:
        self.stacks: dict[tuple[str, ...], float] = defaultdict(float)
        self.threads: dict[str, float] = {}
        self.children = 0.0
        self.loop = 0.0
        self.wall = 0.0

    def stages(self) -> dict[str, float]:
        """CPU seconds of the event loop's thread by stage, largest first."""
        found: dict[str, float] = defaultdict(float)
        for stack, seconds in self.stacks.items():
            found[_stage(stack)] += seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def collapsed(self) -> Iterator[str]:
        """Lines "outer;…;inner microseconds", as flame graph programs read them."""
        for stack, seconds in sorted(self.stacks.items()):
            yield f"{';'.join(reversed(stack))} {round(seconds * 1e6)}"


def _stage(stack: Iterable[str]) -> str:
    for place in stack:
        file, _, name = place.partition(":")
        stage = STAGES.get((file, name)) or STAGES.get((file, ""))
        if stage is not None:
            return stage
    return "loop, telemetry, rest"


@contextmanager
def profiled(child_pids: Iterable[int]) -> Iterator[Profile]:
    """Sample while the block runs. On the main thread only, where signals arrive."""
    profile = Profile()
    pids = list(child_pids)
    before = _thread_cpu()
    children = sum(_process_cpu(pid) for pid in pids)
    last = started = time.thread_time()
    wall = time.monotonic()

    def sample(_: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.thread_time()
        stack: list[str] = []
        while frame is not None and len(stack) < DEPTH:
            stack.append(_place(frame.f_code))
            frame = frame.f_back
        profile.stacks[tuple(stack)] += now - last
        last = now

    former = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield profile
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
        profile.loop = time.thread_time() - started
        profile.wall = time.monotonic() - wall
        profile.children = sum(_process_cpu(pid) for pid in pids) - children
        for name, seconds in _thread_cpu().items():
            profile.threads[name] = seconds - before.get(name, 0.0)


@cache
def _place(code: CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_name}"


def _thread_cpu() -> dict[str, float]:
    """CPU seconds of this process's other threads so far, by name."""
    here = threading.get_native_id()
    found: dict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        if thread.native_id is not None and thread.native_id != here:
            name = thread.name.rstrip("0123456789_")
            found[name] += _schedstat(os.getpid(), thread.native_id)
    return dict(found)


def _process_cpu(pid: int) -> float:
    """CPU seconds of another process's threads so far, 0.0 if it has ended."""
    try:
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return 0.0
    return sum(_schedstat(pid, task) for task in tasks)


def _schedstat(pid: int, task: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0
