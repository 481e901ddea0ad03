"""Progress on stderr, for people: a bar for what takes a while, on a terminal that can draw one; nothing elsewhere.

`quiet`: a program reads the answer (--json), so nobody looks.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

MANY: Final = 50  # things, and
LARGE: Final = 1 << 20  # bytes: what is less is done before a bar could be read

Advance = Callable[[int], None]


def _unseen(_: int) -> None:
    """Nobody looks."""


@contextmanager
def counting(what: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar of `total` things; call what is given with how many more are done."""
    if total < MANY or quiet or not _drawable():
        yield _unseen
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.advance(task, more)


@contextmanager
def downloading(size: int, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar of `size` bytes; call what is given with how many more have come."""
    if size < LARGE or quiet or not _drawable():
        yield _unseen
        return
    from rich.progress import Progress

    with Progress(*_byte_columns(), console=_console(), transient=True) as progress:
        task = progress.add_task("downloading", total=size)
        yield lambda more: progress.advance(task, more)


@contextmanager
def uploading(paths: list[Path], *, quiet: bool = False) -> Iterator[Callable[[Path], Any]]:
    """A bar of the bytes of these files; gives what to upload instead of a path, so that the bar sees it read."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size < LARGE or quiet or not _drawable():
        yield str
        return
    from rich.progress import Progress

    files: list[_SeenFile] = []
    with Progress(*_byte_columns(), console=_console(), transient=True) as progress:
        task = progress.add_task("uploading", total=size)

        def seen() -> None:
            progress.update(task, completed=sum(file.furthest for file in files))

        def opened(path: Path) -> _SeenFile:
            file = _SeenFile(path, seen)
            files.append(file)
            return file

        try:
            yield opened
        finally:
            for file in files:
                file.close()


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """For work of an unknown length: the time that went by, and what was done last."""
    if quiet or not _drawable():
        yield lambda text: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def tell(text: str) -> None:
            progress.update(task, description=text)

        yield tell


class _SeenFile(io.FileIO):
    """A file that tells how far it was read."""

    def __init__(self, path: Path, seen: Callable[[], None]) -> None:
        super().__init__(path)
        self.furthest = 0
        self._seen = seen

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; a second reading after a broken upload does not count again."""
        data = super().read(-1 if size is None else size)
        self.furthest = max(self.furthest, self.tell())
        self._seen()
        return data or b""


def _drawable() -> bool:
    """Whether stderr is a terminal that can take back what it has shown; one that cannot would keep an empty line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _byte_columns() -> tuple[Any, ...]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

    return TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
