"""The cluster: shards with their terms and slots, workers with their beats and clocks; drains."""

from __future__ import annotations

from duly.core.tokens import Scope
from duly.faces.http.answers import Answer
from duly.faces.pages.site import Page
from duly.faces.pages.visit import SeeOther, Visit


async def cluster(visit: Visit) -> Page:
    """Shards and workers."""
    servicer = visit.servicer
    return Page(
        "cluster.html",
        "Cluster",
        {"shards": await servicer.shards(), "workers": await servicer.workers(), "missing": await servicer.ready()},
        parts=("health", "shards", "workers"),
        every=2_000_000,
    )


async def rest(visit: Visit) -> Answer:
    """Let a worker take nothing new, or take work again."""
    await visit.form(Scope.ADMIN)
    on = visit.call.path["action"] == "rest"
    await visit.servicer.rest_worker(visit.call.path["worker"], on=on)
    raise SeeOther(visit.url("/cluster", done="resting" if on else "working"))
