"""A job's status as a small SVG image: its name, how its last run ended, and how late that was. Pure."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

from duly.core.contract import JobView
from duly.core.instants import parse_duration

GREEN: Final = "#1b7f3b"
ORANGE: Final = "#a85b00"
RED: Final = "#b3261e"
GREY: Final = "#5f6368"
LONGEST: Final = 48  # letters of the name
_LETTER: Final = 7  # px; texts are told their length, so that every font fits
_WIDE: Final = 13
_ROOM: Final = 10  # px on both sides of a text together

# What XML does not allow, and what would turn the direction of the text around it.
_UNSHOWN: Final = re.compile("[^\t\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]")
_TURNING: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def badge(job: JobView) -> str:
    """The image as text. Its colours differ in lightness too, and its words say all."""
    label = _shown(job.name or job.id)
    message, colour = _outcome(job)
    left, right = _width(label) + _ROOM, _width(message) + _ROOM
    name, words = html.escape(label), html.escape(message)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{name}: {words}">'
        f"<title>{name}: {words}</title>"
        f'<clipPath id="r"><rect width="{left + right}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#3c4043"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{_ROOM // 2}" y="14" textLength="{left - _ROOM}">{name}</text>'
        f'<text x="{left + _ROOM // 2}" y="14" textLength="{right - _ROOM}">{words}</text></g></svg>'
    )


def _outcome(job: JobView) -> tuple[str, str]:
    """Words and colour."""
    run = job.last_run
    ended = f"{job.state}, " if job.state in ("paused", "deleted") else ""
    if run is None:
        return f"{ended}no run yet", GREY
    colour = GREEN if run.state == "succeeded" else GREY if run.state in ("cancelled", "skipped") else RED
    if run.lateness_ms is None:
        return f"{ended}{run.state}", colour
    if colour == GREEN and run.lateness_ms * 1_000 > parse_duration(job.max_lateness):
        colour = ORANGE
    return f"{ended}{run.state}, {_lateness(run.lateness_ms)} late", colour


def _lateness(milliseconds: float) -> str:
    if milliseconds < 1_000:
        return f"{milliseconds:.1f} ms"
    seconds = milliseconds / 1_000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:,.0f} min"


def _shown(text: str) -> str:
    clean = _TURNING.sub("", _UNSHOWN.sub("\ufffd", text)).strip() or "job"
    return clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "…"


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else _WIDE if unicodedata.east_asian_width(letter) in "WF" else _LETTER
        for letter in text
    )
