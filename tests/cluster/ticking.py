"""An app with a scheduled function, whose job its workers register."""

from __future__ import annotations

from duly import Duly

app = Duly()


@app.job(schedule="every 1s")
def tick() -> None:
    """Nothing, every second."""
