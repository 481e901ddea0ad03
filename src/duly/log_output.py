"""How a server's log is written: lines for people on a terminal, JSON objects elsewhere, all to stderr.

Messages come from the standard library's loggers; structlog gives them their form. Control characters in messages
are escaped, so that a job's name cannot forge a line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}


def configure(level: str, form: Literal["auto", "json", "text"]) -> None:
    """Send the loggers of this process to stderr, at this level and above, in this form."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _one_line,
    ]
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("uvicorn", "httpx2"):  # their comings and goings are told by duly
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


def _one_line(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """The message with its control characters escaped."""
    event["event"] = str(event["event"]).translate(_ESCAPES)
    return event
