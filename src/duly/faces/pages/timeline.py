"""The timeline: what ran where, with a live edge; zoomed and moved by links."""

from __future__ import annotations

from duly.core.instants import DAY, HOUR, MINUTE, format_instant, parse_instant
from duly.faces.pages.drawing import retry_links, timeline_blocks, timeline_marks
from duly.faces.pages.site import Page
from duly.faces.pages.visit import Visit

SPANS = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 12 * HOUR, DAY)


async def timeline(visit: Visit) -> Page:
    """A window that ends now, or at `end`."""
    minutes = visit.number("minutes", 15, 1, 24 * 60)
    span = minutes * MINUTE
    end = parse_instant(visit.query["end"], pointer="/query/end") if visit.query.get("end") else None
    found = await visit.servicer.timeline(namespace=visit.namespace, end=end, span=span)
    blocks, heights = timeline_blocks(found.rows, found.start, found.end, found.now)
    start, last, now = (parse_instant(each) for each in (found.start, found.end, found.now))
    narrower = max((each for each in SPANS if each < span), default=span) // MINUTE
    wider = min((each for each in SPANS if each > span), default=span) // MINUTE
    later = None if end is None or last + span // 2 >= now else format_instant(last + span // 2)
    return Page(
        "timeline.html",
        "Timeline",
        {"timeline": found},
        {
            "blocks": blocks,
            "heights": heights,
            "links": retry_links(blocks),
            "marks": timeline_marks(start, last),
            "edge": round((now - start) / (last - start) * 1000, 1) if now < last else None,
            "minutes": minutes,
            "narrower": narrower,
            "wider": wider,
            "earlier": format_instant(last - span // 2),
            "later": later,
        },
        parts=("lanes",),
        every=1_000_000 if end is None else 10_000_000,
    )
