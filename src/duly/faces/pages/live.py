"""The event stream of a page: its changed parts, rendered anew when something happened, at most four times a second.

    event log ─▶ touched? ─▶ the page's own handler ─▶ parts that differ ─▶ <hx-partial> ─▶ morphed in place

However much happens, a page is looked at again at most every 250 ms, and never spends more than a tenth of the time
being made. Every few seconds (`Page.every`) it is looked at anyway: other servicers and the clock change things, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from duly.core.errors import DulyError, Malformed, NotFound
from duly.core.instants import MILLISECOND, SECOND
from duly.faces.http.answers import Answer, EventStream
from duly.faces.http.call import Call
from duly.faces.http.query import Query
from duly.faces.pages.site import Page
from duly.faces.pages.table import Handler, PageTable
from duly.faces.pages.visit import Visit, read_pairs

APART: Final = 250 * MILLISECOND
SHARE: Final = 9  # rests for so many times what making it took
LONGEST_APART: Final = 5 * SECOND
_AGO: Final = re.compile(r'(class="ago"[^>]*>)[^<]*')  # kept true by the page itself


async def live(visit: Visit, table: PageTable) -> Answer:
    """The stream of the page that the query names."""
    target = urlsplit(visit.query.get("page", "/")[:8192])
    found = table.find(target.path)
    route = None if found is None else found[0].get("GET")
    if found is None or route is None or route.open or route.name in ("live", "static"):
        raise NotFound("there is no such page")
    try:
        query = target.query.encode("ascii")
    except UnicodeEncodeError:
        raise Malformed("the query of this address cannot be read") from None
    at = visit.number("at", -1, 0, 10**9)
    scope = {**visit.call.scope, "path": target.path, "query_string": query, "path_params": found[1], "method": "GET"}
    return EventStream(_frames(visit, table, route.handler, scope, at))


async def _frames(
    visit: Visit, table: PageTable, handler: Handler, scope: dict[str, object], at: int
) -> AsyncIterator[bytes]:
    servicer, call = visit.servicer, visit.call
    pairs = read_pairs(scope["query_string"])  # type: ignore[arg-type]
    log = servicer.event_log
    shown: dict[str, bytes] = {}
    number = log.number
    known = number == at  # nothing happened since the page was made: what it shows is what would be sent
    while not log.closed:
        began = servicer.monotonic()
        own = Call(scope, call.gone, call.send, context=call.context, principal=None, namespace=None, query=Query())  # type: ignore[arg-type]
        try:
            page = await handler(table.visit(own, pairs))
        except DulyError as error:
            yield b"event: gone\ndata: " + error.code.encode() + b"\n\n"
            return
        if not isinstance(page, Page):
            return
        pieces = []
        now = table.visit(own, pairs)
        for name in page.parts:
            html = table.site.part(now, page, name)
            digest = hashlib.blake2b(_AGO.sub(r"\1", html).encode(), digest_size=16).digest()
            if shown.get(name) != digest and not known:
                pieces.append(f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">{html}</hx-partial>')
            shown[name] = digest
        known = False
        if pieces:
            yield b"".join(b"data: " + line + b"\n" for line in "".join(pieces).encode().splitlines()) + b"\n"
        rest = min(max(APART, SHARE * (servicer.monotonic() - began)), LONGEST_APART)
        await servicer.pause(rest)
        try:
            async with asyncio.timeout(page.every / SECOND):
                number = await log.touched(number, now.namespace, page.jobs)
        except TimeoutError:
            number = log.number
