"""Lateness: a histogram by cause, and by job, shard and worker."""

from __future__ import annotations

from duly.faces.pages.drawing import histogram
from duly.faces.pages.site import Page
from duly.faces.pages.visit import Visit

HOURS = (1, 6, 24)


async def lateness(visit: Visit) -> Page:
    """How late runs were over one, six or 24 hours."""
    hours = visit.number("hours", 24, 1, 24)
    report = await visit.servicer.lateness(namespace=visit.namespace, hours=hours)
    return Page(
        "lateness.html",
        "Lateness",
        {"report": report},
        {"bars": histogram(report), "hours": hours, "choices": HOURS},
        parts=("figures", "bars", "groups"),
        charts=True,
        every=10_000_000,
    )
