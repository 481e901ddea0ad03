"""A bare `clock_nanosleep` loop: how late this machine is by itself, to read duly's lateness against."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def bare_timer(period: int, count: int) -> list[int]:
    """Sleep to each of `count` instants `period` µs apart; returns by how many µs each wake was late."""
    sleep = ctypes.CDLL(None, use_errno=True).clock_nanosleep
    base = time.monotonic_ns() + 10_000_000
    late = []
    for index in range(count):
        due = base + index * period * 1000
        target = _Timespec(*divmod(due, 1_000_000_000))
        sleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(target), None)
        late.append((time.monotonic_ns() - due) // 1000)
    return late


def main() -> None:
    """`python -m duly.bench.timer PERIOD COUNT`, in µs: prints the latenesses as JSON."""
    sys.stdout.write(str(bare_timer(int(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
