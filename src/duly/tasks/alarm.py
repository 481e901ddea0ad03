"""Calls at instants of CLOCK_MONOTONIC on an event loop, never early and not rounded to its milliseconds.

An event loop's own timers are rounded up (asyncio) or fire up to a third of a millisecond early (uvloop); a timer
descriptor of the kernel's does neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
from collections.abc import Callable
from heapq import heappop, heappush

from duly.tasks.executor import microseconds

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_ABSOLUTE = 1


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Call:
    """A call to come; `cancel` takes it back."""

    __slots__ = ("at", "function")

    def __init__(self, at: int, function: Callable[[], None]) -> None:
        self.at = at
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        """It will not happen."""
        self.function = None


class Alarm:
    """Calls functions at their instants (µs of CLOCK_MONOTONIC), in order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._heap: list[tuple[int, int, Call]] = []
        self._order = itertools.count()
        self._loop.add_reader(self._descriptor, self._ring)

    def at(self, instant: int, function: Callable[[], None]) -> Call:
        """Call `function` at `instant`, or as soon as possible if that has passed."""
        call = Call(instant, function)
        heappush(self._heap, (instant, next(self._order), call))
        if self._heap[0][2] is call:
            self._set(instant)
        return call

    def _set(self, instant: int) -> None:
        instant = max(instant, 1)  # zero would disarm it
        spec = _Spec(0, 0, instant // 1_000_000, instant % 1_000_000 * 1_000)
        self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, 8)
        now = microseconds()
        heap = self._heap
        while heap and heap[0][0] <= now:
            function = heappop(heap)[2].function
            if function is not None:
                function()
        while heap and heap[0][2].function is None:
            heappop(heap)
        if heap:
            self._set(heap[0][0])

    def close(self) -> None:
        """Forget every call."""
        self._heap.clear()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
