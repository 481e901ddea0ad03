"""A server's log: JSON where nobody looks, one line a message, whatever is in it."""

from __future__ import annotations

import subprocess
import sys

import msgspec

PROGRAM = """
import logging
from duly.log_output import configure
configure("info", {form!r})
log = logging.getLogger("duly.test")
log.debug("not shown")
log.info("job %s", "evil\\n2026 forged line\\x1b[31m")
try:
    raise ValueError("no")
except ValueError:
    log.exception("it failed")
"""


def written(form: str) -> str:
    """What a program writes to its stderr."""
    command = [sys.executable, "-c", PROGRAM.format(form=form)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stderr


def test_json_off_a_terminal() -> None:
    """Every line is an object with a time, a level, a logger and the message; a traceback is a field."""
    first, second = [msgspec.json.decode(line) for line in written("auto").splitlines()]
    assert (first["level"], first["logger"]) == ("info", "duly.test")
    assert first["event"] == "job evil\\x0a2026 forged line\\x1b[31m"
    assert "ValueError: no" in second["exception"]


def test_text_cannot_be_forged() -> None:
    """The message stays on its line, its escapes are shown and not obeyed."""
    (line,) = [line for line in written("text").splitlines() if "evil" in line]
    assert "\\x0a2026 forged line\\x1b[31m" in line
