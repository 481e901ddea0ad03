"""Lateness: a histogram by cause, and by job, shard and worker."""

from __future__ import annotations

from typing import Any

from duly.core.overview import LatenessReport
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
        {"bars": histogram(report), "hours": hours, "choices": HOURS, "plot": _plot(report)},
        parts=("figures", "bars", "groups"),
        charts=True,
        every=10_000_000,
    )


def _plot(report: LatenessReport) -> dict[str, Any]:
    """The first minute and the p99 of each from there on, to two digits: a day must fit a page."""
    if not report.per_minute:
        return {"start": 0, "p99": []}
    start, last = report.per_minute[0][0], report.per_minute[-1][0]
    known = {minute: p99 for minute, _, p99 in report.per_minute}
    found = [known.get(minute) for minute in range(start, last + 1)]
    return {"start": start, "p99": [None if p99 is None else float(f"{p99:.2g}") for p99 in found]}
