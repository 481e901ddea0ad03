"""Keeps what a task leaves: output files and captured streams go to blobs, by digest.

An output folder was written by code that is not trusted. By the time it is read nothing of that code runs any
more; every name is opened relative to its folder, without following links, and must be a regular file with a
single name. What is refused fails the run with the path and the reason, so that no output is lost in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import unicodedata
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from duly.core.errors import TooLarge
from duly.core.model import MAX_LOG_BYTES, ErrorKind, Failure, Output
from duly.ports import Blobs
from duly.tasks.removal import remove_tree

MAX_FILES: Final = 1_000
MAX_PATH: Final = 1_024  # bytes of an output's path
MAX_DEPTH: Final = 64  # folders above an output: each is open while it is walked
_CHUNK: Final = 1 << 20
_STREAMS: Final = ("stdout", "stderr")


class Refused(Exception):
    """An output that cannot be kept. `kind` is "input" for what it is, "limit" for how much of it there is."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind

    def failure(self) -> Failure:
        """As the run's error."""
        return Failure(kind=self.kind, message=str(self))


def safe_name(path: str) -> str:
    """The path itself if it is a relative path that any system can hold; raises Refused with what is wrong."""
    shown = path.encode("utf-8", "backslashreplace").decode()[:200]
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise Refused("input", f"output name {shown!r} is not UTF-8") from None
    if size > MAX_PATH:
        raise Refused("limit", f"output path {shown!r}… is {size} bytes long; at most {MAX_PATH} are kept")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in path):
        raise Refused("input", f"output name {shown!r} has control or direction characters")
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise Refused("input", f"output path {shown!r} is not a plain relative path")
    return path


def find_outputs(root: Path, max_bytes: int) -> list[tuple[str, int]]:
    """Relative paths and sizes of the regular files below `root`, sorted. Raises Refused."""
    found: list[tuple[str, int]] = []
    total = 0
    if root.is_symlink() or not root.is_dir():
        raise Refused("input", "its output folder was removed or replaced")
    for directory, folders, files, handle in os.fwalk(root, follow_symlinks=False):
        below = os.path.relpath(directory, root)
        prefix = "" if below == "." else below + "/"
        for name in folders + files:
            path = safe_name(prefix + name)
            found_as = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(found_as.st_mode):
                if path.count("/") >= MAX_DEPTH:
                    raise Refused("limit", f"outputs lie more than {MAX_DEPTH} folders deep")
                continue
            _check(path, found_as)
            total += found_as.st_size
            found.append((path, found_as.st_size))
            if len(found) > MAX_FILES:
                raise Refused("limit", f"more than {MAX_FILES} output files")
            if total > max_bytes:
                raise Refused("limit", f"outputs are larger than {max_bytes} bytes together")
    return sorted(found)


def _check(path: str, found: os.stat_result) -> None:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(found.st_mode):
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise Refused("input", f"output {path!r} is {kind}; only regular files are kept")
    if found.st_nlink != 1:
        raise Refused("input", f"output {path!r} is a hard link; only files of its own are kept")


def _open(root: Path, path: str) -> int:
    """Open a file below root without following a link on any step."""
    *folders, name = path.split("/")
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for folder in folders:
            further = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = further
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except OSError as error:
        raise Refused("input", f"output {path!r} cannot be read: {error.strerror}") from error
    finally:
        os.close(at)
    try:
        _check(path, os.fstat(descriptor))
    except Refused:
        os.close(descriptor)
        raise
    return descriptor


async def _chunks(descriptor: int) -> AsyncGenerator[bytes, None]:
    while chunk := await asyncio.to_thread(os.read, descriptor, _CHUNK):
        yield chunk


async def _put(blobs: Blobs, descriptor: int, limit: int) -> tuple[str, int]:
    """Small files in one piece, large ones as a stream. Closes the descriptor."""
    try:
        if os.fstat(descriptor).st_size <= _CHUNK // 4:
            return await blobs.put(os.read(descriptor, _CHUNK), limit=limit)
        async with contextlib.aclosing(_chunks(descriptor)) as chunks:
            return await blobs.put(chunks, limit=limit)
    finally:
        os.close(descriptor)


async def keep_outputs(root: Path, blobs: Blobs, max_bytes: int) -> tuple[Output, ...]:
    """Store every file below `root`. Raises Refused."""
    kept = []
    for path, _ in await asyncio.to_thread(find_outputs, root, max_bytes):
        descriptor = await asyncio.to_thread(_open, root, path)
        try:
            digest, size = await _put(blobs, descriptor, max_bytes)
        except TooLarge as error:
            raise Refused("limit", f"output {path!r} is larger than {max_bytes} bytes") from error
        kept.append(Output(path=path, size=size, digest=digest))
    return tuple(kept)


async def keep_logs(stem: str, blobs: Blobs) -> dict[str, str]:
    """Store the captured streams `<stem>.stdout` and `<stem>.stderr` that have anything in them."""
    logs = {}
    for stream in _STREAMS:
        try:
            descriptor = os.open(f"{stem}.{stream}", os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        if os.fstat(descriptor).st_size == 0:
            os.close(descriptor)
            continue
        logs[stream], _ = await _put(blobs, descriptor, MAX_LOG_BYTES + 4_096)
    return logs


def remove(*paths: str) -> None:
    """Delete files and folders that are no longer needed; what cannot be deleted is left to the next start."""
    for path in paths:
        with contextlib.suppress(OSError):
            Path(path).unlink()
            continue
        remove_tree(path)


def remove_logs(stem: str) -> None:
    """Delete captured streams that have been kept."""
    for stream in _STREAMS:
        with contextlib.suppress(OSError):
            Path(f"{stem}.{stream}").unlink()
