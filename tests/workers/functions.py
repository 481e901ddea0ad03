# ruff: noqa: T201, TID251, ASYNC240 - the code here is as users write it
"""Functions that the workers of tests run, in threads and in child processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from duly import current_run


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


def add(a: int, b: int = 1) -> int:
    return a + b


async def add_async(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


def wall() -> int:
    return time.time_ns() // 1_000


async def wall_async() -> int:
    return time.time_ns() // 1_000


def fail(text: str) -> None:
    raise ValueError(text)


def leave() -> None:
    sys.exit(3)


def big(size: int) -> str:
    return "x" * size


def not_json() -> object:
    return object()


def who() -> dict[str, Any]:
    run = current_run
    return {
        "id": run.id,
        "job": run.job_id,
        "attempt": run.attempt,
        "scheduled_at": run.scheduled_at.isoformat(),
        "lateness": run.lateness,
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
    }


async def who_async() -> dict[str, Any]:
    return who()


def touch(path: str) -> int:
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def wait_for(path: str, said: str = "") -> int:
    """Says that it has begun, then waits for a file to appear."""
    if said:
        Path(said).write_text(str(os.getpid()))
    while not Path(path).exists():
        threading.Event().wait(0.002)
    return os.getpid()


async def wait_for_async(path: str, said: str = "") -> int:
    if said:
        Path(said).write_text(str(os.getpid()))
    while not Path(path).exists():
        await asyncio.sleep(0.002)
    return os.getpid()


def swallow(path: str) -> str:
    """Catches whatever ends it, and says so."""
    try:
        wait_for(path)
    except Exception:  # noqa: BLE001
        return "an Exception"
    finally:
        Path(path + ".finally").touch()
    return "the file"


def ignore_signals(said: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(said).touch()
    while True:
        threading.Event().wait(1)


def die(code: int) -> None:
    os._exit(code)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    threading.Event().wait(10)


def leave_child(said: str) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    Path(said).write_text(str(child.pid))
    threading.Event().wait(100)


def speak(lines: int = 1) -> None:
    for _ in range(lines):
        print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("app").warning("a warning")
    logging.getLogger("app").info("an info")
    current_run.log.info("to the run's log")


async def speak_async(word: str) -> None:
    for _ in range(5):
        print(word)
        await asyncio.sleep(0.001)


def log_only() -> None:
    current_run.log.warning("to the run's log")


def speak_and_wait(path: str) -> None:
    print("first", flush=True)
    wait_for(path)
    print("second")


def shout(size: int) -> None:
    sys.stdout.write("x" * size)


def in_thread() -> str:
    found = []
    thread = threading.Thread(target=lambda: (found.append(current_run.id), print("from a thread")))
    thread.start()
    thread.join()
    return found[0]


def progress(path: str) -> None:
    for step in range(100):
        current_run.progress(step / 100, f"step {step}")
    current_run.progress(0.99, "last")
    wait_for(path)


def leave_files() -> None:
    (current_run.output / "deep").mkdir()
    (current_run.output / "deep" / "report.txt").write_text("a report")


def leave_link() -> None:
    (current_run.output / "passwd").symlink_to("/etc/passwd")


def instant() -> int:
    """CLOCK_MONOTONIC, µs."""
    return time.monotonic_ns() // 1000
