"""What a terminal may be shown of what tasks and clients wrote: text and colours, nothing that commands it."""

from __future__ import annotations

import codecs
import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONGEST: Final = 64  # characters of a colour sequence
_STRINGS: Final = frozenset("]PX^_")  # after ESC: begin a string that ends with BEL or ESC \
RESET: Final = b"\x1b[0m"


def plain(text: str) -> str:
    """Text whose control characters, and what turns the direction of writing, are only marked."""
    return _CONTROL.sub("\ufffd", text)


class ColouredText:
    """Bytes of a log, piece by piece, as they may go to a terminal: UTF-8, line ends, tabs and colours stay.

    Whatever else a terminal would obey is left out: cursor moves, titles, the clipboard, queries.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = "text"
        self._sequence = ""
        self.coloured = False

    def feed(self, data: bytes) -> bytes:
        """The part of it that is shown."""
        out: list[str] = []
        for letter in self._decoder.decode(data):
            shown = self._take(letter)
            if shown:
                out.append(shown)
        return "".join(out).encode()

    def end(self) -> bytes:
        """What sets the terminal's colours back, if any were set."""
        return RESET if self.coloured else b""

    def _take(self, letter: str) -> str:
        if self._state == "text":
            if letter == "\x1b":
                self._state = "escape"
                return ""
            return "" if _CONTROL.match(letter) and letter != "\r" else letter
        if self._state == "escape":
            self._state = "colour" if letter == "[" else "string" if letter in _STRINGS else "text"
            self._sequence = ""
            return ""
        if self._state == "string":
            self._state = "text" if letter == "\x07" else "string end" if letter == "\x1b" else "string"
            return ""
        if self._state == "string end":
            self._state = "text" if letter == "\\" else "string"
            return ""
        return self._colour(letter)

    def _colour(self, letter: str) -> str:
        """Within ESC [ … : kept whole if it is digits and semicolons up to an m."""
        if "\x40" <= letter <= "\x7e":
            self._state = "text"
            if letter != "m" or self._sequence.strip("0123456789;:") or len(self._sequence) > _LONGEST:
                return ""
            self.coloured = self._sequence not in ("", "0")
            return f"\x1b[{self._sequence}m"
        if letter == "\x1b":
            self._state = "escape"
        elif not "\x20" <= letter <= "\x3f":
            self._state = "text"  # no sequence after all
            return self._take(letter)
        elif len(self._sequence) <= _LONGEST:
            self._sequence += letter
        return ""
