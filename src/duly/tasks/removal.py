"""Removes a folder that untrusted code has filled, however deep and whatever its permissions.

Walking down keeps a descriptor and a stack frame for each level, and a program makes ten thousand levels in a second.
So nothing is walked down: a folder that is found is moved to the top, and has its turn there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def _never() -> bool:
    return False


def remove_tree(root: str | os.PathLike[str], *, stopped: Callable[[], bool] = _never) -> None:
    """Delete `root` and all below it, following no link. Never raises: what cannot be deleted stays.

    So does what is left once `stopped` says True, which is asked before each folder.
    """
    try:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        waiting = _emptied(top, None, 0)
        moved = 0
        while waiting:
            if stopped():
                return
            name = waiting.pop()
            with contextlib.suppress(OSError):
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    found = _emptied(folder, top, moved)
                finally:
                    os.close(folder)
                waiting += found
                moved += len(found)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        Path(root).rmdir()


def _emptied(folder: int, top: int | None, moved: int) -> list[str]:
    """Unlink the files of a folder and move its folders to the top; returns their names there.

    Without a `top` the folders stay where they are. A folder without permissions gets them: it cannot be moved else.
    """
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):  # first all of them: reading on while they go is slow on some file systems
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=folder)
                    continue
                os.chmod(entry.name, 0o700, dir_fd=folder)
                name = entry.name
                if top is not None:
                    name = f".duly-moved-{moved + len(found)}"
                    os.rename(entry.name, name, src_dir_fd=folder, dst_dir_fd=top)
                found.append(name)
    return found
