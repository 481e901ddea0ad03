"""The versions of a job's definition: the list, what differs between two of them, and restoring one."""

from __future__ import annotations

from typing import Any, Final

from duly.core.contract import JobVersionList, JobVersionView
from duly.core.errors import Conflict, NotFound, PreconditionFailed
from duly.core.job_ids import is_job_id
from duly.core.tokens import Scope
from duly.core.versions import DiffLine, changed, diff
from duly.faces.http.answers import Answer
from duly.faces.http.versions import number_of
from duly.faces.pages.site import Page
from duly.faces.pages.visit import SeeOther, Visit

PAGE: Final = 50
SHOWN: Final = 40_000  # characters of a difference; the page as JSON has them all
LINE: Final = 2_000  # characters of one line
_LONGEST: Final = 18  # digits of a version


async def version_page(visit: Visit) -> Page:
    """The list, and what differs between the versions `from` and `to`: the newest change, unless they are named."""
    job_id = _id(visit)
    servicer, namespace = visit.servicer, visit.namespace
    job = await servicer.get_job(job_id, namespace=namespace)
    cursor = visit.query.get("cursor") or None
    versions = await servicer.list_versions(job_id, namespace=namespace, limit=PAGE, cursor=cursor)
    to = _named(visit, "to", job.version)
    newer = await servicer.get_version(job_id, to, namespace=namespace)
    older = await _older(visit, job_id, newer, versions)
    lines = [] if older is None else diff(older.definition, newer.definition)
    data: dict[str, Any] = {
        "job": job,
        "versions": versions,
        "from": older,
        "to": newer,
        "changed": [] if older is None else changed(older.definition, newer.definition),
        "diff": [text if sign == "@" else sign + text for sign, text in lines],
    }
    more = {"older": older, "newer": newer, "lines": (shown := _shown(lines)), "cut": shown != lines}
    return Page("versions.html", f"Versions of {job.name or job.id}", data, more)


async def restore(visit: Visit) -> Answer:
    """Define the job again as it was; if it is still as the page showed it."""
    job_id, number = _id(visit), number_of(visit.call.path)
    await visit.form(Scope.OPERATE)
    seen = _named(visit, "at", -1)
    try:
        await visit.servicer.restore_version(
            job_id,
            number,
            namespace=visit.namespace,
            if_version=None if seen < 0 else seen,
            by=visit.principal.key_id,
        )
    except PreconditionFailed:
        raise Conflict("somebody else has changed this job meanwhile; look at its versions again") from None
    raise SeeOther(visit.url(f"/jobs/{job_id}/versions", done="restored"))


def _shown(lines: list[DiffLine]) -> list[DiffLine]:
    """As much of a difference as makes a light page."""
    found: list[DiffLine] = []
    left = SHOWN
    for sign, text in lines:
        left -= min(len(text), LINE) + 1
        if left < 0:
            break
        found.append(DiffLine(sign, text if len(text) <= LINE else text[:LINE] + " …"))
    return found


async def _older(visit: Visit, job_id: str, newer: JobVersionView, versions: JobVersionList) -> JobVersionView | None:
    """What to compare with: the version that is named, else the one before; None if that is not kept."""
    asked = _named(visit, "from", -1)
    if asked >= 0:
        return await visit.servicer.get_version(job_id, asked, namespace=visit.namespace)
    if newer.changed is None:
        return None
    before = next((each for each in versions.items if each.version < newer.version), None)
    return before or await visit.servicer.get_version(job_id, newer.version - 1, namespace=visit.namespace)


def _named(visit: Visit, name: str, otherwise: int) -> int:
    """A version that the address names."""
    text = visit.query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST else otherwise


def _id(visit: Visit) -> str:
    job_id = visit.call.path["job_id"]
    if not is_job_id(job_id):
        raise NotFound(f"there is no job {job_id[:80]!r}")
    return job_id
