"""Values → words, for templates: durations, instants, sizes, counts. What comes from outside stays text."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from markupsafe import Markup, escape

from duly.core.explain import CAUSES
from duly.core.instants import parse_instant
from duly.core.model import LateCause

LEVEL_WORDS: Final = (
    "no run",
    "on time",
    "within its margin",
    "late",
    "more than ten times its margin late",
    "a run failed",
    "a run was missed",
)
STATE_MARKS: Final = {
    "waiting": "◦",
    "dispatched": "◔",
    "running": "▶",
    "succeeded": "✓",
    "failed": "✕",
    "cancelled": "⊘",
    "skipped": "↷",
    "missed": "?",
    "lost": "⚠",
    "quarantined": "⚠",
    "released": "↺",
    "active": "●",
    "paused": "‖",
    "completed": "✓",
    "deleted": "✕",
    "ready": "●",
    "draining": "◔",
    "up": "●",
    "down": "✕",
}


def duration(ms: float | None) -> str:
    """`0.4 ms`, `12 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if ms is None:
        return "–"
    if ms < 0.95:
        return f"{ms:.2g} ms" if ms else "0 ms"
    if ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def between(start: str | None, end: str | None) -> str:
    """How long it took from one instant to another."""
    if start is None or end is None:
        return "–"
    return duration(max(0, parse_instant(end) - parse_instant(start)) / 1000)


def clock(instant: str | None, *, now: str | None = None, exact: bool = False) -> Markup:
    """An instant as a <time>: the time of day, with the date when it is another day than `now`."""
    if instant is None:
        return Markup('<span class="none">–</span>')
    day, rest = instant[:10], instant[11:]
    shown = rest[:12] if exact else rest[:8]
    if now is None or now[:10] != day:
        shown = f"{day} {shown}"
    kind = "exact" if exact else "clock"
    return Markup('<time datetime="{0}" class="{1}" title="{0}">{2}</time>').format(instant, kind, shown)


def ago(instant: str | None, now: str) -> Markup:
    """An instant by its distance from now: `in 20 s`, `3 min ago`. Scripts keep it true."""
    if instant is None:
        return Markup('<span class="none">–</span>')
    distance = (parse_instant(instant) - parse_instant(now)) / 1000
    text = f"in {duration(distance)}" if distance >= 0 else f"{duration(-distance)} ago"
    if abs(distance) < 1000:
        text = "now"
    return Markup('<time datetime="{0}" class="ago" title="{0}">{1}</time>').format(instant, text)


def size(count: int) -> str:
    """`812 B`, `12 KB`, `3.4 MB`."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def count(number: int) -> str:
    """`12 345`, with a narrow space that does not break."""
    return f"{number:,}".replace(",", "\u202f")


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 run`, `2 runs`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def state(word: str) -> Markup:
    """A state as a badge: a mark and a word, never colour alone."""
    return Markup('<span class="state is-{0}"><i aria-hidden="true">{1}</i>{0}</span>').format(
        word, STATE_MARKS.get(word, "•")
    )


def short(identity: str) -> str:
    """An id, shortened for narrow places: its end differs most."""
    return identity if len(identity) <= 14 else f"…{identity[-12:]}"


def cause(word: LateCause | None) -> str:
    """A cause of lateness as a sentence."""
    return CAUSES.get(word, "") if word else ""


def pretty(value: Any) -> str:
    """JSON to read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def compact(value: Any) -> str:
    """JSON in an attribute, for scripts."""
    return msgspec.json.encode(value).decode()


def text(value: object) -> Markup:
    """Text with what cannot be seen made visible: control characters and those that turn the direction of text."""
    shown = "".join(
        f"\\u{ord(letter):04x}"
        if (ord(letter) < 32 and letter not in "\n\t")
        or 0x202A <= ord(letter) <= 0x202E
        or 0x2066 <= ord(letter) <= 0x2069
        else letter
        for letter in str(value)
    )
    return escape(shown)


FILTERS: Final = {
    "duration": duration,
    "between": between,
    "clock": clock,
    "ago": ago,
    "size": size,
    "count": count,
    "state": state,
    "short": short,
    "cause": cause,
    "pretty": pretty,
    "json": compact,
    "text": text,
}
GLOBALS: Final = {"plural": plural, "LEVEL_WORDS": LEVEL_WORDS}
