"""The event stream of a page: its changed parts, rendered anew when something happened, at most four times a second.

    event log ─▶ touched? ─▶ the page's own handler ─▶ parts that differ ─▶ <hx-partial> ─▶ morphed in place

However much happens, a page is looked at again at most every 250 ms, and all watched pages together spend about a tenth
of the time being made: the more there are, the longer each one rests, five seconds at most. They are made one after the
other, with a breath between two, so that hundreds of them take a third of the time at most and wait for their turn.
Every few seconds (`Page.every`) it is looked at anyway: other servicers and the clock change things, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final
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
BREATH: Final = 2  # after one page was made, before the next: so many times what making it took
SHARE: Final = 9  # all pages together rest for so many times what making them took
LONGEST_APART: Final = 5 * SECOND
UNANNOUNCED: Final = frozenset({"log"})  # grows without an event: the page may show less than the first look
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
    visit: Visit, table: PageTable, handler: Handler, scope: dict[str, Any], at: int
) -> AsyncIterator[bytes]:
    known = visit.servicer.event_log.number == at  # nothing happened since the page was made
    table.watchers += 1
    try:
        async with contextlib.aclosing(_updates(visit, table, handler, scope, known)) as updates:
            async for frame in updates:
                yield frame
    finally:
        table.watchers -= 1


async def _updates(
    visit: Visit, table: PageTable, handler: Handler, scope: dict[str, Any], known: bool
) -> AsyncGenerator[bytes, None]:
    """A frame for each look that found something changed. `known`: the first look is what the page shows already."""
    servicer, call = visit.servicer, visit.call
    pairs = read_pairs(scope["query_string"])
    log = servicer.event_log
    shown: dict[str, bytes] = {}
    number = log.number
    while not log.closed:
        async with table.turn:
            began = servicer.monotonic()
            own = Call(scope, call.gone, call.send, context=call.context, principal=None, namespace=None, query=Query())  # type: ignore[arg-type]
            try:
                now = table.visit(own, pairs)  # each time anew: a token that was revoked ends the stream
                page = await handler(now)
                pieces = _changed(table, now, page, shown, known) if isinstance(page, Page) else []
            except DulyError as error:
                yield b"event: gone\ndata: " + error.code.encode() + b"\n\n"
                return
            took = servicer.monotonic() - began
            await servicer.pause(BREATH * took)
        if not isinstance(page, Page):
            return
        known = False
        if pieces:
            yield b"".join(b"data: " + line + b"\n" for line in "".join(pieces).encode().splitlines()) + b"\n"
        rest = min(max(APART, SHARE * took * table.watchers), LONGEST_APART)
        await servicer.pause(rest)
        try:
            async with asyncio.timeout(page.every / SECOND):
                number = await log.touched(number, now.namespace, page.jobs)
        except TimeoutError:
            number = log.number


def _changed(table: PageTable, visit: Visit, page: Page, shown: dict[str, bytes], known: bool) -> list[str]:
    """The parts that are not as they were `shown`, which is brought up to date.

    Of a page that is `known` only few, and what is not sent is not taken for shown: the store may tell this look of
    something whose event is still to come, and which the page does not have.
    """
    pieces = []
    for name in page.parts:
        if known and name not in UNANNOUNCED:
            continue
        html = table.site.part(visit, page, name)
        digest = hashlib.blake2b(_AGO.sub(r"\1", html).encode(), digest_size=16).digest()
        if shown.get(name) != digest:
            pieces.append(f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">{html}</hx-partial>')
        shown[name] = digest
    return pieces
