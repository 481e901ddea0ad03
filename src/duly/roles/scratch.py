"""A worker's own folder for its attempts' files, and the removal of what dead workers left.

Each worker has `<scratch>/duly-worker-*`, mode 0700, locked while it lives; one whose lock is free is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from duly.tasks.removal import remove_tree

PREFIX = "duly-worker-"
LOCK = ".lock"


class Scratch:
    """The folder of one worker."""

    def __init__(self, parent: str) -> None:
        self._parent = Path(parent)
        self._folder: Path | None = None
        self._lock = -1

    def open(self) -> str:
        """Make the folder. Blocks on the disk."""
        self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        self._lock = _locked(self._folder)
        return str(self._folder)

    def clear_left(self, stopped: Callable[[], bool]) -> None:
        """Clear away the folders of workers that are gone, until `stopped`. Blocks on the disk, for minutes perhaps."""
        for left in self._parent.glob(f"{PREFIX}*"):
            if not stopped():
                _clear(left, stopped)

    def close(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Remove the folder; what is left when `stopped` says so is cleared away by the next worker here."""
        if self._folder is not None:
            _remove(self._folder, stopped)
            self._folder = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove(folder: Path, stopped: Callable[[], bool]) -> None:
    """Remove a worker's folder, the lock last: a folder without one is taken for one that is just being made."""
    for each in folder.iterdir():
        if each.name != LOCK:
            remove_tree(each, stopped=stopped)
    if not stopped():
        remove_tree(folder)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _clear(folder: Path, stopped: Callable[[], bool]) -> None:
    """Remove a folder whose worker is gone. One that is another user's, or in use, stays."""
    if folder.is_symlink() or not (folder / LOCK).exists():
        return  # just being made
    try:
        descriptor = _locked(folder)
    except OSError:
        return
    _remove(folder, stopped)
    os.close(descriptor)
