"""The next 24 hours: what the schedules ask for beside what the workers can take."""

from __future__ import annotations

from duly.core.instants import MINUTE, format_instant, parse_instant
from duly.faces.pages.drawing import forecast_path
from duly.faces.pages.site import Page
from duly.faces.pages.visit import Visit


async def forecast(visit: Visit) -> Page:
    """Runs a minute, peaks, quiet minutes, and what a clock change moves."""
    found = await visit.servicer.forecast(namespace=visit.namespace)
    peak = max(found.per_minute, default=0)
    near = found.capacity is not None and found.capacity <= 4 * max(1, peak)
    most = max(1.0, float(peak), found.capacity if near and found.capacity else 0.0)
    start = parse_instant(found.start)

    def at(minute: int) -> str:
        return format_instant(start + minute * MINUTE)

    hours = [(minute, at(minute)[11:16]) for minute in range((60 - start // MINUTE % 60) % 60, 1440, 180)]
    return Page(
        "forecast.html",
        "Next 24 hours",
        {"forecast": found},
        {
            "path": forecast_path(found.per_minute, most),
            "line": None if found.capacity is None or not near else round(160 - found.capacity / most * 156, 1),
            "most": most,
            "peak": peak,
            "peaks": [(at(minute), count) for minute, count in found.peaks],
            "quiet": [at(minute) for minute in found.quiet],
            "changes": [(parse_instant(each) - start) // MINUTE for each in found.clock_changes],
            "hours": hours,
        },
        parts=("figures", "still", "lists"),
        charts=True,
        every=2_000_000 if not found.ready else 30_000_000,
    )
