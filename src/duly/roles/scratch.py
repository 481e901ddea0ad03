"""A worker's own folder for its attempts' files, and the removal of what dead workers left.

Each worker has `<scratch>/duly-worker-*`, mode 0700, locked while it lives; one whose lock is free is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from duly.tasks.removal import remove_tree

PREFIX = "duly-worker-"


class Scratch:
    """The folder of one worker."""

    def __init__(self, parent: str) -> None:
        self._parent = Path(parent)
        self._folder: Path | None = None
        self._lock = -1

    def open(self) -> str:
        """Make the folder, after clearing away those of workers that are gone. Blocks on the disk."""
        self._parent.mkdir(parents=True, exist_ok=True)
        for left in self._parent.glob(f"{PREFIX}*"):
            _clear(left)
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        self._lock = _locked(self._folder)
        return str(self._folder)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            remove_tree(self._folder)
            self._folder = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _clear(folder: Path) -> None:
    """Remove a folder whose worker is gone. One that is another user's, or in use, stays."""
    if folder.is_symlink() or not (folder / ".lock").exists():
        return  # just being made
    try:
        descriptor = _locked(folder)
    except OSError:
        return
    remove_tree(folder)
    os.close(descriptor)
