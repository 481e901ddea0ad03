"""Signing in with a token, and out again."""

from __future__ import annotations

from duly.core.errors import DulyError
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer
from duly.faces.pages.site import Page, cookie, session_cookie, session_name
from duly.faces.pages.visit import SeeOther, Visit


async def sign_in_page(visit: Visit) -> Page:
    """The form."""
    return _page(visit, "")


async def sign_in(visit: Visit) -> Page | Answer:
    """A token becomes a session. Wrong ones are counted by address, as the API's are."""
    form = await visit.form(Scope.READ)
    client = visit.call.scope.get("client")
    try:
        principal = visit.site.context.access.admit(
            f"Bearer {form.text('token').strip()}", None if client is None else client[0], Scope.READ
        )
    except DulyError as error:
        return _page(visit, error.detail, status=error.status)
    session = visit.site.sessions.begin(principal.key_id or None)
    raise SeeOther(_local(form.text("next")), cookies=(session_cookie(visit.call.scope, session),))


async def sign_out(visit: Visit) -> Answer:
    """The session ends in this browser."""
    await visit.form(Scope.READ)
    gone = cookie(visit.call.scope, session_name(visit.call.scope), "", age=0)
    raise SeeOther("/sign-in", cookies=(gone,))


def _page(visit: Visit, wrong: str, *, status: int = 200) -> Page:
    return Page(
        "sign_in.html", "Sign in", {"error": wrong}, {"next": _local(visit.query.get("next", "/"))}, status=status
    )


def _local(path: str) -> str:
    """The path, if it is one of this server; else home."""
    fine = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isascii() and path.isprintable()
    return path if fine and len(path) < 4096 else "/"
