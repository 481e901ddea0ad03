"""What every contestant runs, and how it tells when it began. The same code for all; only the standard library.

The first instruction of a task reads CLOCK_REALTIME; the pair (due, began) then goes to a memory-mapped file of the
process, so that telling costs no system call, needs no flush, and outlives a worker that is killed.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_RECORD = struct.Struct("<qq")
_ROOM = 1 << 20  # bytes, 65,536 records: more than any workload has
UNKNOWN = 0  # the due time of a task that its framework does not tell

_lock = threading.Lock()
_notes: tuple[int, mmap.mmap, itertools.count[int]] | None = None


def noop() -> None:
    """Nothing."""


def stamp(due: int) -> None:
    """Notes when it began, for an instant in µs since 1970."""
    note(due, time.time_ns() // 1000)


def note(due: int, began: int) -> None:
    """Keep a pair; from any thread or process."""
    notes = _notes
    if notes is None or notes[0] != os.getpid():
        notes = _open()
    _RECORD.pack_into(notes[1], next(notes[2]), due, began)


def _open() -> tuple[int, mmap.mmap, itertools.count[int]]:
    global _notes  # noqa: PLW0603 - one file for each process
    with _lock:
        if _notes is None or _notes[0] != os.getpid():
            descriptor, _ = tempfile.mkstemp(suffix=".notes", dir=os.environ["VERSUS_DIR"])
            os.ftruncate(descriptor, _ROOM)
            _notes = (os.getpid(), mmap.mmap(descriptor, _ROOM), itertools.count(0, _RECORD.size))
            os.close(descriptor)
        return _notes


def read_notes() -> Iterator[tuple[int, int]]:
    """All pairs (due, began) that any process has kept so far."""
    for path in Path(os.environ["VERSUS_DIR"]).glob("*.notes"):
        for due, began in _RECORD.iter_unpack(path.read_bytes()):
            if not began:
                break
            yield due, began
