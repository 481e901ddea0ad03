"""The functions of the seeded duly: a small business whose jobs run well, late, not at all, and badly."""

from __future__ import annotations

import sys
import threading

from duly import Duly, current_run

duly = Duly("http://127.0.0.1:9")  # never called: a worker reads the registered functions alone
_PAUSE = threading.Event()  # never set: waiting on it is taking time


@duly.job()
def tick() -> int:
    """Does nothing, well."""
    return 1


@duly.job()
def slow(seconds: float = 0.2) -> str:
    """Takes its time and says how far it is."""
    steps = 8
    for step in range(steps):
        _PAUSE.wait(seconds / steps)
        current_run.progress((step + 1) / steps, f"step {step + 1} of {steps}")
        sys.stdout.write(f"\x1b[32mok\x1b[0m step {step + 1} of {steps}\n")
        sys.stdout.flush()
    return "done"


@duly.job()
def broken(invoice: int = 4711) -> None:
    """Fails, each time in nearly the same words."""
    raise ValueError(f"invoice {invoice} has no customer (looked in /srv/books/{invoice}.json)")
