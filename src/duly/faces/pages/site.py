"""What all pages share: templates, headers, the frame around a page, and how an error looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import jinja2
import msgspec

from duly.core.errors import DulyError
from duly.core.instants import format_instant
from duly.core.tokens import Scope
from duly.core.views import problem
from duly.faces.http.answers import Answer, Reply, json_reply
from duly.faces.http.problems import Headers
from duly.faces.http.settings import Context
from duly.faces.pages import words
from duly.faces.pages.compiled import Compilation, CompiledTemplates
from duly.faces.pages.sessions import LIFE, Session, Sessions
from duly.faces.pages.static import StaticFiles
from duly.faces.pages.visit import Visit
from duly.version import __version__

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS: Final[Headers] = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
]
MENU: Final = (
    ("/", "Punctuality"),
    ("/jobs", "Jobs"),
    ("/runs", "Runs"),
    ("/timeline", "Timeline"),
    ("/lateness", "Lateness"),
    ("/failures", "Failures"),
    ("/forecast", "Next 24 h"),
    ("/cluster", "Cluster"),
)
DONE: Final = {
    "created": "The job was created.",
    "saved": "The job was saved.",
    "restored": "Restored, as a new version.",
    "paused": "Paused: no further occurrence starts.",
    "resumed": "Resumed: it goes on from now.",
    "triggered": "A run was opened.",
    "deleted": "Deleted: what waits is gone, history stays.",
    "cancelled": "A cancel was asked for.",
    "retried": "It runs again, as this new run.",
    "group-retried": "Run again: {n}.",
    "bulk": "Done: {n} jobs.",
    "muted": "Muted in this browser.",
    "unmuted": "Shown again.",
    "resting": "The worker takes nothing new; what it runs goes on.",
    "working": "The worker takes work again.",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows. `data` is what `?format=json` gives; `more` is for the template alone.

    `parts` are the template's blocks that the event stream keeps up to date; `jobs` whose events matter, None for all.
    """

    template: str
    title: str
    data: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    jobs: frozenset[str] | None = None
    every: int = 5_000_000  # µs after which the stream looks again though nothing happened
    status: int = 200
    charts: bool = False
    cookies: tuple[bytes, ...] = ()


class Site:
    """The pages' common ground."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self.context = context
        self.sessions = sessions
        self.files = StaticFiles()
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader("duly.faces.pages"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            bytecode_cache=CompiledTemplates(),
        )
        self.templates.filters.update(words.FILTERS)
        self.templates.globals.update(words.GLOBALS, static=self.files.url, menu=MENU, version=__version__)
        # Macros by this name, because a block that is rendered alone does not see what its template imported.
        self.templates.globals["pieces"] = self.templates.get_template("pieces.html").module
        self.compilation = Compilation(self.templates)

    # -- answers --------------------------------------------------------------------------------------------

    def answer(self, visit: Visit, page: Page) -> Answer:
        """The page as HTML, or as JSON if that was asked for."""
        if wants_json(visit):
            return json_reply(page.data, status=page.status, headers=self._headers(visit, page.cookies))
        body = self.templates.get_template(page.template).render(self.frame(visit, page)).encode()
        self.compilation.begin()
        headers = [(b"content-type", b"text/html; charset=utf-8"), *self._headers(visit, page.cookies)]
        return Reply(body, status=page.status, headers=headers, compressible=True)

    def fragment(self, visit: Visit, template: str, **values: Any) -> Answer:
        """A piece of a page."""
        body = self.templates.get_template(template).render(self._ground(visit) | values).encode()
        headers = [(b"content-type", b"text/html; charset=utf-8"), *self._headers(visit, ())]
        return Reply(body, headers=headers, compressible=True)

    def part(self, visit: Visit, page: Page, name: str) -> str:
        """One block of a page."""
        template = self.templates.get_template(page.template)
        context = template.new_context(self.frame(visit, page))
        return "".join(template.blocks[name](context))

    def frame(self, visit: Visit, page: Page) -> dict[str, Any]:
        """What templates may use."""
        servicer = visit.servicer
        live = None
        if page.parts:
            live = "/live?" + urlencode({"page": visit.url(), "at": servicer.event_log.number})
        done = DONE.get(visit.query.get("done", ""), "").format(n=visit.number("n", 0, 0, 1_000_000))
        return {**self._ground(visit), "page": page, "live": live, "done": done, **page.data, **page.more}

    def _ground(self, visit: Visit) -> dict[str, Any]:
        here = next((path for path, _ in reversed(MENU) if visit.path.startswith(path) and path != "/"), "/")
        return {
            "visit": visit,
            "url": visit.url,
            "csrf": visit.csrf,
            "here": here,
            "now": format_instant(self.context.servicer.wall()),
            "may_submit": visit.may(Scope.SUBMIT),
            "may_operate": visit.may(Scope.OPERATE),
            "may_admin": visit.may(Scope.ADMIN),
        }

    def see_other(self, visit: Visit, path: str, cookies: Sequence[bytes] = ()) -> Answer:
        """303: go there, on this server."""
        assert path.startswith("/")
        assert not path.startswith("//")
        headers = [(b"location", path.encode("ascii", "xmlcharrefreplace")), *self._headers(visit, cookies)]
        return Reply(status=303, headers=headers)

    def failed(self, visit: Visit, error: DulyError, request_id: str) -> Answer:
        """An error as a page."""
        told = problem(error, request_id=request_id)
        data = msgspec.to_builtins(told)
        return self.answer(visit, Page("problem.html", told.title, data, {"problem": told}, status=error.status))

    def _headers(self, visit: Visit, cookies: Sequence[bytes]) -> Headers:
        headers = [*SAFE_HEADERS, *((b"set-cookie", cookie) for cookie in cookies)]
        if visit.fresh and not any(cookie.startswith(session_name(visit.call.scope).encode()) for cookie in cookies):
            headers.append((b"set-cookie", session_cookie(visit.call.scope, visit.session)))
        return headers


def wants_json(visit: Visit) -> bool:
    """True for `?format=json`."""
    return visit.query.get("format") == "json"


def session_name(scope: Any) -> str:
    """The cookie's name: one that only this host, over TLS, can have set, where there is TLS."""
    return "__Host-duly_session" if scope.get("scheme") == "https" else "duly_session"


def session_cookie(scope: Any, session: Session) -> bytes:
    """The header that sets it."""
    return cookie(scope, session_name(scope), session.cookie, age=LIFE // 1_000_000)


def cookie(scope: Any, name: str, value: str, *, age: int) -> bytes:
    """A Set-Cookie header that no script reads and no other site causes to be sent. `age` in seconds."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}".encode()


def read_cookies(header: str | None) -> dict[str, str]:
    """The cookies of a request."""
    found: dict[str, str] = {}
    for pair in (header or "")[:8192].split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals:
            found[name] = value
    return found
