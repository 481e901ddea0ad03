"""What a page says that is printed, against what is: exact, but for what differs from run to run.

- `…` stands for anything within a line; alone on a line, for any number of lines.
- An id of a job, run or worker is whatever it is here; from then on the page's id means that one, in commands too.
- An instant with a fraction of a second, a number of milliseconds and the like were measured: any other is as good.
- The page's `http://127.0.0.1:7350` is the server that the page started.
"""

from __future__ import annotations

import re
from typing import Final

ADDRESS: Final = "127.0.0.1:7350"

_JOB: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RUN: Final = rf"{_JOB}@[0-9]{{8}}T[0-9]{{6}}\.[0-9]{{6}}Z"
_WORKER: Final = r"w-[0-9a-f]{8}"
_TOKEN: Final = r"duly_[0-9a-f]{12}_[0-9a-f]{64}"
_MEASURED: Final = {  # what is measured, and is another each time
    "instant": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.(?!0{6})[0-9]{6}Z",
    "second": r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}Z",
    "clock": r"^[0-9]{2}:[0-9]{2}:[0-9]{2}",
    "milliseconds": r"[0-9][0-9,]*(?:\.[0-9]+)?(?= ms)",
    "lateness": r"(?<=\"lateness_ms\":)[0-9.]+",
    "duration": r"(?<=It started )[0-9a-z]+(?= after)",
    "any": r"…",
}
_HERE: Final = {  # what stands for it in a pattern
    "instant": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z",
    "second": _MEASURED["second"],
    "clock": r"[0-9]{2}:[0-9]{2}:[0-9]{2}",
    "milliseconds": r"[0-9][0-9,]*(?:\.[0-9]+)?",
    "lateness": r"[0-9.]+",
    "duration": r"[0-9a-z]+",
    "any": r"[^\n]*",
}
_VARYING: Final = re.compile(
    rf"(?P<run>{_RUN})|(?P<job>{_JOB})|(?P<worker>{_WORKER})|(?P<token>{_TOKEN})|"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _MEASURED.items())
)
_IDS: Final = {"run": _RUN, "job": _JOB, "worker": _WORKER, "token": _TOKEN}
_BLANKS: Final = re.compile(r"\t| {2,}")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class Known:
    """What the page's ids and address stand for in this run of it."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.address = ADDRESS

    def actual(self, text: str) -> str:
        """A command of the page as it has to be given here."""
        for written, here in sorted(self.ids.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(written, here)
        return text.replace(ADDRESS, self.address)

    def matches(self, written: str, printed: str) -> bool:
        """Whether the page is right; what its new ids stand for is then known."""
        groups: list[str] = []
        pattern = "".join(self._line(line, groups) for line in written.splitlines())
        lines = [_spaced(line) for line in printed.splitlines()]
        match = re.fullmatch(pattern, "".join(f"{line}\n" for line in lines), re.S)
        if match is None:
            return False
        for name, here in zip(groups, match.groups(), strict=True):
            self.ids[name] = here
            if name.startswith("duly_"):
                self.ids[name.split("_")[1]] = here.split("_")[1]  # a token is revoked by the part in its middle
        return True

    def _line(self, line: str, groups: list[str]) -> str:
        if line.strip() == "…":
            return r"(?:[^\n]*\n)*?"
        line = _spaced(line)
        pattern, position = "", 0
        for found in _VARYING.finditer(line):
            pattern += self._literal(line[position : found.start()]) + self._wild(found, groups)
            position = found.end()
        return pattern + self._literal(line[position:]) + r"\n"

    def _literal(self, text: str) -> str:
        return re.escape(self.actual(text))

    def _wild(self, found: re.Match[str], groups: list[str]) -> str:
        kind, text = str(found.lastgroup), found[0]
        if kind not in _IDS:
            return _HERE[kind]
        if text in self.ids:
            return re.escape(self.ids[text])
        if text in groups:
            return rf"(?:\{groups.index(text) + 1})"
        groups.append(text)
        return f"({_IDS[kind]})"


def _spaced(line: str) -> str:
    """Without colour; the width of a table's columns depends on what is in them."""
    return _BLANKS.sub("  ", _COLOUR.sub("", line).rstrip())
