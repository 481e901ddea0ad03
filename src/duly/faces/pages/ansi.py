"""Log bytes → HTML: text is escaped, colours become classes, every other control sequence is dropped."""

from __future__ import annotations

import re
from typing import Final

from markupsafe import Markup, escape

_ESCAPE: Final = re.compile(
    r"\x1b\[([0-9;]*)m"  # colours and weights
    r"|\x1b\[[0-9;?]*[ -/]*[@-~]"  # other control sequences
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b[@-Z\\-_]?"
)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
_OFF: Final = {22: {"b", "d"}, 23: {"i"}, 24: {"u"}}
_ON: Final = {1: "b", 2: "d", 3: "i", 4: "u"}
_COLOURS: Final = frozenset(f"c{number}" for number in range(8))


def ansi_html(data: bytes) -> Markup:
    """A log, or a part of one, as HTML."""
    return _AnsiText().html(data.decode("utf-8", "replace"))


class _AnsiText:
    """Keeps the colours in force."""

    def __init__(self) -> None:
        self._classes: set[str] = set()

    def html(self, text: str) -> Markup:
        pieces: list[Markup] = []
        position = 0
        for match in _ESCAPE.finditer(text):
            self._put(pieces, text[position : match.start()])
            if match.group(1) is not None:
                self._colour(match.group(1))
            position = match.end()
        self._put(pieces, text[position:])
        return Markup().join(pieces)

    def _put(self, pieces: list[Markup], text: str) -> None:
        if not text:
            return
        clean = _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
        classes = " ".join(sorted(self._classes))
        pieces.append(Markup('<span class="{}">{}</span>').format(classes, clean) if classes else escape(clean))

    def _colour(self, codes: str) -> None:
        numbers = [int(code[:4] or 0) for code in codes.split(";")[:20]]
        place = 0
        while place < len(numbers):
            number = numbers[place]
            place += 1
            if number == 0:
                self._classes.clear()
            elif number in _ON:
                self._classes.add(_ON[number])
            elif number in _OFF:
                self._classes -= _OFF[number]
            elif 30 <= number <= 37 or 90 <= number <= 97:
                self._classes -= _COLOURS
                self._classes.add(f"c{number % 10}")
            elif number == 39:
                self._classes -= _COLOURS
            elif number in (38, 48):  # a colour of 256 or of all: its arguments are passed over
                place += {5: 2, 2: 4}.get(numbers[place] if place < len(numbers) else 0, 1)
