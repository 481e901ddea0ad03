"""The functions that the server of these tests runs."""

from __future__ import annotations

from pathlib import Path

from duly import Duly, current_run

duly = Duly("http://127.0.0.1:1")


@duly.job()
async def add(a: int, b: int = 1) -> int:
    """A coroutine."""
    return a + b


@duly.job(retry=1)
def fail(text: str) -> None:
    """Fails with this text."""
    raise ValueError(text)


@duly.job()
def write(name: str, text: str) -> str:
    """Leaves a file, and says so."""
    Path(current_run.output, name).write_text(text)
    return name


@duly.job(schedule="0 2 * * *", timezone="Europe/Berlin", retry=5, max_lateness="2s", labels={"team": "ops"})
def nightly() -> None:
    """Has a job of its own."""
