"""Values → SVG paths, so that charts are there without scripts. Each cell's height says as much as its colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from duly.core.instants import parse_instant
from duly.core.overview import LatenessReport, Outcome, StripRow, TimelineRow

CELL: Final = 10  # width of a minute in a strip
HEIGHT: Final = 20
_HEIGHTS: Final = (0, 8, 11, 15, 20, 20, 20)
SPARK: Final = 6


class Stroke(NamedTuple):
    """A path and the level or word that its class is made of."""

    kind: str
    path: str


def strip_paths(row: StripRow) -> list[Stroke]:
    """One path for each level of a row."""
    paths: dict[int, list[str]] = {}
    for cell in row.cells:
        left, top = cell.minute * CELL, HEIGHT - _HEIGHTS[cell.level]
        bar = f"M{left + CELL // 2} {HEIGHT}V{top}" if cell.level < 6 else f"M{left + 1} {top + 1}h7v{HEIGHT - 2}h-7z"
        paths.setdefault(cell.level, []).append(bar)
    return [Stroke(f"t{level}", "".join(paths[level])) for level in sorted(paths)]


def spark_paths(outcomes: Sequence[Outcome]) -> list[Stroke]:
    """The last outcomes, oldest at the left: short bars are well, tall ones are not."""
    paths: dict[str, list[str]] = {}
    for place, outcome in enumerate(outcomes):
        kind, tall = "ok", 8
        if outcome.state in ("failed", "lost", "quarantined"):
            kind, tall = "bad", 16
        elif outcome.state == "missed":
            kind, tall = "missed", 16
        elif outcome.state in ("skipped", "cancelled"):
            kind, tall = "off", 4
        elif outcome.late:
            kind, tall = "late", 12
        paths.setdefault(kind, []).append(f"M{place * SPARK + SPARK // 2} 16V{16 - tall}")
    return [Stroke(f"s-{kind}", "".join(paths[kind])) for kind in sorted(paths)]


class Block(NamedTuple):
    """A bar of a timeline, in SVG units: 1000 are the window."""

    x: float
    y: int
    width: float
    kind: str
    run_id: str
    title: str


LANE: Final = 18


def timeline_blocks(
    rows: Sequence[TimelineRow], start: str, end: str, now: str
) -> tuple[dict[str, list[Block]], dict[str, int]]:
    """The bars of each worker, and how tall its drawing is."""
    begin, whole = parse_instant(start), max(1, parse_instant(end) - parse_instant(start))
    last = parse_instant(now)
    blocks: dict[str, list[Block]] = {}
    for row in rows:
        made = []
        for span in row.spans:
            left = (parse_instant(span.start) - begin) / whole * 1000
            right = ((last if span.end is None else parse_instant(span.end)) - begin) / whole * 1000
            left, right = max(0.0, left), min(1000.0, right)
            width = max(1.5, right - left)
            kind = span.state if not (span.late and span.state == "succeeded") else "late"
            tries = f", attempt {span.attempt} of {span.attempts}" if span.attempts > 1 else ""
            title = f"{span.job_name}: {span.state}{tries}, from {span.start[11:23]}"
            made.append(Block(round(left, 1), span.lane * LANE + 2, round(width, 1), kind, span.run_id, title))
        blocks[row.worker] = made
    return blocks, {row.worker: row.lanes * LANE + 4 for row in rows}


class Bar(NamedTuple):
    """A part of a histogram's bar."""

    x: int
    y: float
    height: float
    kind: str


def histogram(report: LatenessReport) -> list[Bar]:
    """Stacked bars, 100 units wide each, 160 tall at most; on time at the bottom, causes above."""
    most = max((sum(bar.causes.values()) for bar in report.bars), default=0) or 1
    bars = []
    for place, bar in enumerate(report.bars):
        top = 160.0
        for cause in sorted(bar.causes):
            tall = max(1.5, bar.causes[cause] / most * 156)
            top -= tall
            bars.append(Bar(place * 100 + 4, round(top, 1), round(tall, 1), cause or "in_time"))
    return bars


def retry_links(blocks: dict[str, list[Block]]) -> dict[str, list[str]]:
    """Within a worker's row, a path from the end of each attempt of a run to the start of its next one."""
    paths: dict[str, list[str]] = {}
    for worker, row in blocks.items():
        last: dict[str, Block] = {}
        for block in row:
            before = last.get(block.run_id)
            if before is not None:
                from_x, from_y = before.x + before.width, before.y + LANE // 2 - 2
                paths.setdefault(worker, []).append(f"M{from_x:.1f} {from_y}L{block.x} {block.y + LANE // 2 - 2}")
            last[block.run_id] = block
    return paths


def timeline_marks(start: int, end: int) -> list[tuple[float, str]]:
    """Some round instants of a window (µs): where they lie in per mille, and their time of day."""
    steps = (10, 30, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600)
    step = next((each for each in steps if (end - start) / 1_000_000 / each <= 8), steps[-1]) * 1_000_000
    marks = []
    at = (start // step + 1) * step
    while at < end:
        seconds = at // 1_000_000 % 86_400
        text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}" + (f":{seconds % 60:02}" if step < 60_000_000 else "")
        marks.append((round((at - start) / (end - start) * 1000, 1), text))
        at += step
    return marks


def forecast_path(per_minute: Sequence[int], most: float) -> str:
    """Runs a minute as one path of 1440 by 160 units."""
    pieces, last = ["M0 160"], 0
    for minute, count in enumerate(per_minute):
        if count != last:
            pieces.append(f"H{minute}V{160 - count / most * 156:.1f}")
            last = count
    return "".join(pieces) + f"H{len(per_minute)}V160z"
