"""The code blocks of a Markdown page, and what a page says about their running.

```python                   runs, in one namespace with the others of its page; a ```text right after it is its output
```python title="app.py"    is written to that file; a command of the page must use it
```console                  `$ command` lines and what they print, in one shell for the page (see session.py)
```console background       one command that stays up, until the page ends
```toml, ```json            parsed; with a title written, and a duly.toml or a job checked as such
```crontab                  imported without a problem

<!-- example: not run, REASON -->     before a block: it is only compiled or parsed, and the reason is counted
<!-- generated … -->                  on a page: a command makes it, nothing in it runs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
GENERATED: Final = "<!-- generated"

_BLOCK: Final = re.compile(
    r"(?:^<!-- example: not run, (?P<reason>[^\n]+?) -->\n)?^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S
)
_TITLE: Final = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its file name, and the line that it begins at."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    title: str
    text: str
    reason: str
    follows: bool  # directly after the block before it

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page that is written by hand; none of a generated one."""
    text = page.read_text()
    if text.startswith(GENERATED):
        return []
    found: list[Block] = []
    end = -1
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = _TITLE.search(rest)
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start("text")),
                language=language,
                words=tuple(_TITLE.sub("", rest).split()),
                title=title[1] if title else "",
                text=match["text"],
                reason=match["reason"] or "",
                follows=end >= 0 and not text[end : match.start()].strip(),
            )
        )
        end = match.end()
    return found


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, and what it prints."""

    line: int
    text: str
    output: str


def commands_of(block: Block) -> list[Command]:
    """`$ command`, continued after a backslash, a here-document or an open quote by `> ` lines; then its output."""
    found: list[Command] = []
    text: list[str] = []
    output: list[str] = []
    start = 0
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            if text:
                found.append(Command(start, "\n".join(text), "\n".join(output)))
            start, text, output = number, [line[2:]], []
        elif line.startswith("> ") and text and not output:
            text.append(line[2:])
        elif not text:
            raise AssertionError(f"{block}: a console block begins with `$ command`")
        else:
            output.append(line)
    if text:
        found.append(Command(start, "\n".join(text), "\n".join(output).rstrip()))
    return found
