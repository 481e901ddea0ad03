"""The failures inbox: failures that look alike, run again or muted together."""

from __future__ import annotations

import re

from duly.core.errors import InvalidInput
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer
from duly.faces.pages.site import Page, cookie, read_cookies
from duly.faces.pages.visit import SeeOther, Visit

MUTED = "duly_muted"
MOST_MUTED = 100
YEAR = 365 * 24 * 3600
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")


async def failures(visit: Visit) -> Page:
    """Groups, the one seen last first. What is muted is muted in this browser, until it is shown again."""
    days = visit.number("days", 7, 1, 30)
    report = await visit.servicer.failures(namespace=visit.namespace, days=days)
    muted = _muted(visit)
    shown = [group for group in report.groups if (group.fingerprint in muted) == ("muted" in visit.query)]
    hidden = sum(group.fingerprint in muted for group in report.groups)
    return Page(
        "failures.html",
        "Failures",
        {"report": report},
        {"groups": shown, "hidden": hidden, "muted": muted, "days": days, "all": "muted" in visit.query},
        parts=("groups",),
    )


async def act(visit: Visit) -> Answer:
    """Run a group again, mute it, or show it again."""
    fingerprint, action = visit.call.path["fingerprint"], visit.call.path["action"]
    if _FINGERPRINT.fullmatch(fingerprint) is None or action not in ("retry", "mute", "unmute"):
        raise InvalidInput("there is no such group or action")
    await visit.form(Scope.OPERATE if action == "retry" else Scope.READ)
    if action == "retry":
        days = visit.number("days", 7, 1, 30)
        runs = await visit.servicer.retry_failures(fingerprint, namespace=visit.namespace, days=days)
        raise SeeOther(visit.url("/failures", done="group-retried", n=len(runs)))
    muted = [each for each in _muted(visit) if each != fingerprint]
    if action == "mute":
        muted = [*muted, fingerprint][-MOST_MUTED:]
    header = cookie(visit.call.scope, MUTED, ".".join(muted), age=YEAR)
    raise SeeOther(visit.url("/failures", done="muted" if action == "mute" else "unmuted"), cookies=(header,))


def _muted(visit: Visit) -> list[str]:
    text = read_cookies(visit.call.header(b"cookie")).get(MUTED, "")
    return [each for each in text.split(".")[:MOST_MUTED] if _FINGERPRINT.fullmatch(each)]
