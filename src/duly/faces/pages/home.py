"""Home: did it run, and was it on time?"""

from __future__ import annotations

from typing import Literal

from duly.faces.pages.drawing import strip_paths
from duly.faces.pages.site import Page
from duly.faces.pages.visit import Visit


async def home(visit: Visit) -> Page:
    """The heat strip, the figures of a day, what runs now and what is due next."""
    kind: Literal["job", "shard"] = "shard" if visit.query.get("rows") == "shard" else "job"
    minutes = visit.number("minutes", 60, 15, 180)
    servicer, namespace = visit.servicer, visit.namespace
    headline = await servicer.headline(namespace=namespace)
    strip = await servicer.strip(namespace=namespace, kind=kind, minutes=minutes)
    running = await servicer.running_now(namespace=namespace)
    due = await servicer.due_next(namespace=namespace)
    stats = await servicer.stats()
    return Page(
        "home.html",
        "Punctuality",
        {"headline": headline, "strip": strip, "running": running, "due": due, "stats": stats},
        {"paths": {row.id: strip_paths(row) for row in strip.rows}, "minutes": minutes, "kind": kind},
        parts=("figures", "strip", "running", "due"),
    )
