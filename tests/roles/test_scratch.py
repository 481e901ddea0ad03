"""A worker's folder: removed at its end, but not at any price; the rest is cleared away by the next worker there."""

from __future__ import annotations

import os
from pathlib import Path

from duly.roles.scratch import Scratch


def never() -> bool:
    return False


def deep(folder: str, levels: int) -> None:
    """Folders one within the other, deeper than a path can name."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)


def test_what_takes_too_long_to_remove_is_left_for_the_next(tmp_path: Path) -> None:
    """The removal ends when it is told to, between two folders; a later worker finds the rest, and takes it away."""
    first = Scratch(str(tmp_path))
    folder = first.open()
    Path(folder, "commands").mkdir()
    deep(f"{folder}/commands", 3_000)
    asked = 0

    def at_the_hundredth() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 100

    first.close(at_the_hundredth)
    assert asked < 110, "it stops soon"
    assert Path(folder).is_dir()
    second = Scratch(str(tmp_path))
    mine = second.open()
    second.clear_left(lambda: True)
    assert Path(folder).is_dir(), "told to stop before it began"
    second.clear_left(never)
    assert [each.name for each in tmp_path.iterdir()] == [Path(mine).name], "the other's is gone, its own is not"
    second.close(never)
    assert not list(tmp_path.iterdir())
