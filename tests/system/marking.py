"""A function whose attempts are seen from outside: each leaves a file of its own, which must not exist yet."""

from __future__ import annotations

import os
import threading

from duly import Duly, current_run

app = Duly()


@app.job()
def mark(folder: str, need: int = 1) -> str:
    """Leave a file named by run and attempt; fail before attempt `need`."""
    name = f"{folder}/{current_run.id}.{current_run.attempt}"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        os.close(os.open(f"{name}.twice", os.O_CREAT | os.O_WRONLY))
        raise
    if current_run.attempt < need:
        raise RuntimeError(f"attempt {current_run.attempt} of {need}")
    return name


@app.job()
async def block(seconds: float) -> None:
    """Hold the event loop: a mistake that users make."""
    threading.Event().wait(seconds)
