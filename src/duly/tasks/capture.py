"""What a function prints and logs, kept per run: bounded files, made when the first byte is written.

In a child process sys.stdout and sys.stderr are replaced by `Tee`, which asks whose code is writing. What C code
or a program started by the function writes straight to descriptor 1 or 2 is not caught; it goes to the worker's
own output.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from duly.core.model import MAX_LOG_BYTES

TRUNCATED = b"\n[duly: the rest was cut: a stream is kept up to 10 MiB]\n"


class Capture:
    """The log files of one run: `<stem>.stdout` and `<stem>.stderr`."""

    __slots__ = ("_files", "_sizes", "stem")

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}

    @property
    def used(self) -> bool:
        """Something was written."""
        return bool(self._files)

    def write(self, stream: str, data: bytes) -> None:
        """Append to a stream; beyond 10 MiB only a mark is kept."""
        file = self._files.get(stream)
        if file is None:
            path = Path(f"{self.stem}.{stream}")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._files[stream] = path.open("wb", buffering=0)
            self._sizes[stream] = 0
        size = self._sizes[stream]
        if size > MAX_LOG_BYTES:
            return
        room = MAX_LOG_BYTES - size
        self._sizes[stream] = size + len(data)
        file.write(data if len(data) <= room else data[:room] + TRUNCATED)

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            file.close()


class Tee(io.TextIOBase):
    """A text stream that writes to the capture of the run whose code is writing, else to the real stream."""

    def __init__(self, stream: str, real: TextIO | None, whose: Callable[[], Capture | None]) -> None:
        self._stream = stream
        self._real = real
        self._whose = whose

    encoding = "utf-8"  # what cannot be encoded is written as escapes

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        capture = self._whose()
        if capture is not None:
            capture.write(self._stream, text.encode("utf-8", "backslashreplace"))
        elif self._real is not None:
            self._real.write(text)
        return len(text)

    def flush(self) -> None:
        if self._real is not None:
            self._real.flush()

    def fileno(self) -> int:
        if self._real is None:
            raise io.UnsupportedOperation("fileno")
        return self._real.fileno()

    @property
    def buffer(self) -> Any:
        """Where bytes go: for code that writes to sys.stdout.buffer."""
        return _Bytes(self)

    def write_bytes(self, data: bytes) -> int:
        """As `write`, for bytes."""
        capture = self._whose()
        if capture is not None:
            capture.write(self._stream, bytes(data))
        elif self._real is not None:
            self._real.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


class _Bytes(io.RawIOBase):
    def __init__(self, tee: Tee) -> None:
        self._tee = tee

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._tee.write_bytes(data)


def capture_streams(whose: Callable[[], Capture | None]) -> None:
    """Replace this process's stdout and stderr, and send log records that nothing else handles to stderr."""
    sys.stdout = Tee("stdout", sys.__stdout__, whose)
    sys.stderr = Tee("stderr", sys.__stderr__, whose)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.lastResort = handler  # used only while the app has configured no handlers of its own
    logging.lastResort.setLevel(logging.INFO)


LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
