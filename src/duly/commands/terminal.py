"""What commands print: JSON or text on stdout, notes on stderr; tables and colour on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from duly.commands.shown import ColouredText, plain

WHOLE: Final = frozenset({"ID", "JOB", "STATE", "NEXT", "SCHEDULED", "UTC", "LOCAL"})  # columns that are not broken

_SIGN_COLOURS: Final = {"+": "32", "-": "31", "@": "36"}  # green, red, cyan
READABLE: Final = 12  # letters, to which other columns may shrink


def put_json(value: Any) -> None:
    """One JSON document and a line end."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def put(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(text + "\n")


def put_log(pieces: Iterable[tuple[bool, bytes]]) -> None:
    """Bytes of a log as they come, (to stderr, bytes) each: all of them to a pipe, text and colours to a terminal."""
    screens = {out: ColouredText() for out in (sys.stdout, sys.stderr) if out.isatty()}
    try:
        for to_stderr, data in pieces:
            out = sys.stderr if to_stderr else sys.stdout
            screen = screens.get(out)
            out.buffer.write(data if screen is None else screen.feed(data))
            out.buffer.flush()
    finally:
        for out, screen in screens.items():
            out.buffer.write(screen.end())
            out.buffer.flush()


def put_diff(lines: Iterable[tuple[str, str]]) -> None:
    """Lines of a difference, each with its sign; coloured on a terminal, unless NO_COLOR says not to."""
    screen = sys.stdout.isatty()
    colours = _SIGN_COLOURS if screen and not os.environ.get("NO_COLOR") else {}
    for sign, text in lines:
        line = text if sign == "@" else sign + text
        line = plain(line) if screen else line
        put(f"\x1b[{colours[sign]}m{line}\x1b[0m" if sign in colours else line)


def note(text: str) -> None:
    """A line on stderr, for people: said on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def warn(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"duly: {text}\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "") -> None:
    """Rows under headings on a terminal; elsewhere a line for each row, its cells separated by tabs."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            put("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    if not cells:
        note(empty)
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    cells = [[plain(cell) for cell in row] for row in cells]
    if _least_width(columns, cells) > console.width:
        _records(columns, cells)
        return
    heads = [Column(name, no_wrap=name in WHOLE) for name in columns]
    shown = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The narrowest table in which whole columns stay whole and the others can still be read."""
    widths = [max(len(name), *(len(row[index]) for row in rows)) for index, name in enumerate(columns)]
    return sum(
        width if name in WHOLE else min(width, READABLE) for name, width in zip(columns, widths, strict=True)
    ) + len(columns)


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A block of lines for each row, on a terminal that is too narrow for a table."""
    width = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            put("")
        for name, cell in zip(columns, row, strict=True):
            if cell:
                put(f"{name.lower():<{width}}  {cell}")


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, a line each; empty ones are left out."""
    found = [(name, value) for name, value in pairs if value not in (None, "", [], {}, ())]
    width = max((len(name) for name, _ in found), default=0) if sys.stdout.isatty() else 0
    for name, value in found:
        put(f"{name:<{width}}  {plain(_text(value))}" if width else f"{name}\t{_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value)
    return str(value)


def short_time(text: str | None) -> str:
    """An instant of the contract to the second: `2026-12-01 09:00:00Z`."""
    return "" if text is None else text[:19].replace("T", " ") + "Z"


def milliseconds(value: float | None) -> str:
    """A lateness for people."""
    return "" if value is None else f"{value:,.1f} ms"
