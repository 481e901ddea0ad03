"""What a worker and its executors say to each other: 4-byte length, then MessagePack of array-like structs.

worker   ── Work, Retract, Kill, Close ─────────────────────▶ executor
executor ── Hello, Outcomes, Retracted, Begun, Progress ────▶ worker

A ticket is the number of a run in one executor, reused after its outcome. Instants are µs of CLOCK_MONOTONIC.
`Board` is the memory that both see: which tickets have been started (so that the death of an executor fails
those and no others), what runs now and since when, and which of them a signal is meant for.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

import msgspec

from duly.core.model import ErrorKind

TICKETS: Final = 4_096  # runs that one executor may hold at a time
_HEADER: Final = 64


class Item(msgspec.Struct, array_like=True, gc=False):
    """One run for an executor. `offset` is the shard's clock minus CLOCK_MONOTONIC; args and kwargs are JSON.

    `barred`: the worker does not have this function registered, so it must fail. The worker decides, because
    functions may be registered after an executor was started.
    """

    ticket: int
    due: int
    name: str
    args: bytes
    kwargs: bytes
    job_id: str
    scheduled_at: int
    due_at: int
    attempt: int
    offset: int
    barred: bool


class Work(msgspec.Struct, array_like=True, tag=1):
    """Runs to start at their instants."""

    items: list[Item]


class Retract(msgspec.Struct, array_like=True, tag=2):
    """Give back these, or all, that have not been started. `serial` comes back with the answer."""

    serial: int
    tickets: list[int] | None


class Kill(msgspec.Struct, array_like=True, tag=3):
    """Cancel a coroutine that runs."""

    ticket: int


class Close(msgspec.Struct, array_like=True, tag=4):
    """End when what was started has ended."""


class Fault(msgspec.Struct, array_like=True, gc=False):
    """What a run raised."""

    kind: ErrorKind
    message: str
    detail: str
    retryable: bool


class Done(msgspec.Struct, array_like=True, gc=False):
    """A run has ended. `files` is the stem of its log files when there are any, `output` its output folder."""

    ticket: int
    started: int
    finished: int
    result: bytes | None = None
    fault: Fault | None = None
    files: str = ""
    output: str = ""


class Hello(msgspec.Struct, array_like=True, tag=1):
    """The executor is up; or why it cannot be."""

    error: str = ""


class Outcomes(msgspec.Struct, array_like=True, tag=2):
    """Runs that have ended."""

    items: list[Done]


class Retracted(msgspec.Struct, array_like=True, tag=3):
    """The answer to Retract: those that had not been started and now never will here."""

    serial: int
    tickets: list[int]


class Begun(msgspec.Struct, array_like=True, tag=4):
    """Coroutines that have been running for a moment: (ticket, started)."""

    items: list[tuple[int, int]]


class Progress(msgspec.Struct, array_like=True, tag=5):
    """A run says how far it has come."""

    ticket: int
    fraction: float
    message: str


Command = Work | Retract | Kill | Close
Answer = Hello | Outcomes | Retracted | Begun | Progress

encoder: Final = msgspec.msgpack.Encoder()
commands: Final = msgspec.msgpack.Decoder(Command)
answers: Final = msgspec.msgpack.Decoder(Answer)


def frame(message: Command | Answer) -> bytearray:
    """The bytes of a message, with their length in front."""
    buffer = bytearray(4)
    encoder.encode_into(message, buffer, 4)
    buffer[:4] = (len(buffer) - 4).to_bytes(4, "big")
    return buffer


class Frames:
    """Cuts a stream of bytes back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[memoryview]:
        """The whole messages that `data` completes. Each view is valid until the next call."""
        if self._buffer:
            self._buffer += data
            whole = memoryview(bytes(self._buffer))
        else:
            whole = memoryview(data)
        found, at, end = [], 0, len(whole)
        while end - at >= 4:
            size = int.from_bytes(whole[at : at + 4], "big")
            if end - at - 4 < size:
                break
            found.append(whole[at + 4 : at + 4 + size])
            at += 4 + size
        self._buffer = bytearray(whole[at:])
        return found


class Board:
    """Memory that a worker shares with one executor.

    `words[0]`: ticket + 1 of the sync function that runs, else 0. `words[1]`: since when. `words[2]`: ticket + 1
    of the run that a signal is meant for. `flags[ticket]`: 1 once that run has been started.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """Shared through a descriptor from `Board.memory`; without one, for threads of this process only."""
        size = _HEADER + TICKETS
        self._map = None if descriptor is None else mmap.mmap(descriptor, size)
        self._whole = memoryview(bytearray(size) if self._map is None else self._map)
        self.words = self._whole[:_HEADER].cast("Q")
        self.flags = self._whole[_HEADER:]

    @staticmethod
    def memory() -> int:
        """A descriptor of fresh memory, to be handed to the child and closed."""
        descriptor = os.memfd_create("duly-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _HEADER + TICKETS)
        return descriptor

    def close(self) -> None:
        """Unmap it; the board must not be used any more."""
        self.words.release()
        self.flags.release()
        self._whole.release()
        if self._map is not None:
            self._map.close()
