"""Paths → pages: routing, who may see them, and how what goes wrong is shown.

/            GET  a page: html or ?format=json          POST  a form ─▶ 303 back to a page
/live        one event stream a page                    /static/<hash>/<file>
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from duly.core.errors import DulyError, NotFound, Unauthenticated
from duly.core.tokens import Principal, Scope
from duly.faces.http.answers import Answer
from duly.faces.http.call import Call
from duly.faces.http.problems import MethodNotAllowed
from duly.faces.http.query import Query
from duly.faces.pages.site import Page, Site, read_cookies, session_name, wants_json
from duly.faces.pages.visit import SeeOther, Visit, read_pairs

Handler = Callable[[Visit], Awaitable[Page | Answer]]
_FIELD: Final = re.compile(r"\{([a-z_]+)(:path)?\}")


class Route(NamedTuple):
    """A page or an action. `open` ones need no token."""

    method: str
    path: str
    name: str
    handler: Handler
    open: bool = False


class PageTable(BaseRoute):
    """All pages as one route of the app."""

    def __init__(self, site: Site, routes: Sequence[Route]) -> None:
        self.site = site
        self.watchers = 0  # streams that keep pages up to date
        self.turn = asyncio.Lock()  # of the one whose page is being made
        self._places: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            if route.path not in by_path:
                by_path[route.path] = {}
                self._places.append((_pattern(route.path), by_path[route.path]))
            by_path[route.path][route.method] = route

    def find(self, path: str) -> tuple[dict[str, Route], dict[str, str]] | None:
        """The routes of a path by method, and what the path names."""
        for pattern, routes in self._places:
            match = pattern.fullmatch(path)
            if match is not None:
                return routes, match.groupdict()
        return None

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """FULL for every path of the table."""
        found = self.find(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return Match.NONE, {}
        return Match.FULL, {"endpoint": found[0], "path_params": found[1]}

    async def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the page for the method."""
        routes: dict[str, Route] = scope["endpoint"]
        method: str = scope["method"]
        route = routes.get("GET" if method == "HEAD" else method)
        if route is None:
            raise MethodNotAllowed(tuple(sorted(routes)))
        scope["duly.operation"] = f"page.{route.name}"
        call = Call(scope, receive, send, context=self.site.context, principal=None, namespace=None, query=Query())
        if route.name == "static":
            await self.site.files.answer(call).deliver(call)
            return
        pairs = read_pairs(scope["query_string"])
        answer = await self._answer(route, call, pairs)
        await answer.deliver(call)

    async def _answer(self, route: Route, call: Call, pairs: list[tuple[str, str]]) -> Answer:
        try:
            visit = self.visit(call, pairs, open_to_all=route.open)
        except Unauthenticated:
            visit = self._stranger(call, pairs)
            if wants_json(visit) or call.header(b"authorization") is not None:
                raise
            back = call.scope["path"] + ("?" + call.scope["query_string"].decode("latin-1")).rstrip("?")
            where = "/sign-in" + (f"?next={quote(back, safe='')}" if call.scope["method"] in ("GET", "HEAD") else "")
            return self.site.see_other(visit, where)
        try:
            if any(ord(letter) < 32 for value in call.path.values() for letter in value):
                raise NotFound("no name has control characters")
            made = await route.handler(visit)
            return self.site.answer(visit, made) if isinstance(made, Page) else made
        except SeeOther as there:
            return self.site.see_other(visit, there.path, there.cookies)
        except DulyError as error:
            if wants_json(visit):
                raise
            return self.site.failed(visit, error, call.scope["duly.request_id"])

    def visit(self, call: Call, pairs: list[tuple[str, str]], *, open_to_all: bool = False) -> Visit:
        """Who asks. Raises Unauthenticated, Forbidden, Unavailable."""
        access = self.site.context.access
        authorization = call.header(b"authorization")
        session = self.site.sessions.read(read_cookies(call.header(b"cookie")).get(session_name(call.scope)))
        client = call.scope.get("client")
        address = None if client is None else client[0]
        if open_to_all:
            return self._stranger(call, pairs)
        if authorization is None and session is not None and session.key_id is not None:
            principal = access.holder(session.key_id, Scope.READ)
        else:
            principal = access.admit(authorization, address, Scope.READ)
        fresh = session is None
        session = session or self.site.sessions.begin(None)
        return Visit(self.site, call, session=session, fresh=fresh, principal=principal, query=pairs)

    def _stranger(self, call: Call, pairs: list[tuple[str, str]]) -> Visit:
        session = self.site.sessions.read(read_cookies(call.header(b"cookie")).get(session_name(call.scope)))
        fresh = session is None
        session = session or self.site.sessions.begin(None)
        nobody = Principal("", Scope.READ, ())
        return Visit(self.site, call, session=session, fresh=fresh, principal=nobody, query=pairs)


def _pattern(path: str) -> re.Pattern[str]:
    expression, position = "", 0
    for match in _FIELD.finditer(path):
        expression += re.escape(path[position : match.start()])
        expression += f"(?P<{match.group(1)}>{'.+' if match.group(2) else '[^/]+'})"
        position = match.end()
    return re.compile(expression + re.escape(path[position:]), re.DOTALL)
