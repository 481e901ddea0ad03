"""New and edited jobs: filled in, previewed with what would change, then saved; the schedule told as it is typed."""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from duly.core.contract import JobSpec, JobView, PreviewSpec
from duly.core.definition import convert, define_job
from duly.core.errors import Conflict, DulyError, InvalidInput, NotFound, PreconditionFailed
from duly.core.instants import SECOND, parse_instant
from duly.core.job_ids import is_job_id
from duly.core.model import JobId
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer
from duly.faces.pages.job_fields import from_form, merge_patch, to_fields
from duly.faces.pages.same import as_cli, as_curl, sparse
from duly.faces.pages.site import Page
from duly.faces.pages.visit import Form, SeeOther, Visit, complaints

_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+\-/]{0,63}")
NOWHERE: Final = JobId("00000000-0000-7000-8000-000000000000")
QUICK: Final = ("now", "in 10m", "every 15m", "0 * * * *", "0 2 * * *", "30 8 * * 1-5", "H H * * *",
                "RRULE:FREQ=MONTHLY;BYDAY=1MO;BYHOUR=9;BYMINUTE=0")  # fmt: skip


async def new_job(visit: Visit) -> Page:
    """An empty form; `?like=<job id>` fills it in from another job."""
    visit.need(Scope.SUBMIT)
    like = visit.query.get("like", "")
    fields = _empty()
    if is_job_id(like):
        fields |= to_fields(await visit.servicer.get_job(like, namespace=visit.namespace))
    return _page(visit, fields, None)


async def edit_job(visit: Visit) -> Page:
    """The form of a job as it is."""
    visit.need(Scope.OPERATE)
    job = await _job(visit)
    return _page(visit, _empty() | to_fields(job), job)


async def submit_new(visit: Visit) -> Page | Answer:
    """Preview, or create."""
    form = await visit.form(Scope.SUBMIT)
    wanted, page = await _wanted(visit, form, None)
    if wanted is None or form.text("step") != "save":
        return page
    try:
        job, _ = await visit.servicer.create_job(wanted, namespace=visit.one_namespace, by=visit.principal.key_id)
    except InvalidInput as error:
        return _page(visit, _empty() | to_fields(wanted), None, wrong=error)
    raise SeeOther(visit.url(f"/jobs/{job.id}", done="created"))


async def submit_edit(visit: Visit) -> Page | Answer:
    """Preview, or save; a job that was changed meanwhile is told, not overwritten."""
    form = await visit.form(Scope.OPERATE)
    job = await _job(visit)
    wanted, page = await _wanted(visit, form, job)
    if wanted is None or form.text("step") != "save":
        return page
    version = form.text("version")
    before: dict[str, Any] = msgspec.to_builtins(_spec(job))
    patch = merge_patch(before, msgspec.to_builtins(wanted))
    try:
        await visit.servicer.update_job(
            job.id,
            patch,
            namespace=visit.namespace,
            if_version=int(version) if version.isdigit() else job.version,
            by=visit.principal.key_id,
        )
    except PreconditionFailed:
        problem = Conflict("somebody else has changed this job meanwhile; look at what would change now")
        return _page(visit, _empty() | to_fields(wanted), job, wrong=problem, wanted=wanted)
    except InvalidInput as error:
        return _page(visit, _empty() | to_fields(wanted), job, wrong=error)
    raise SeeOther(visit.url(f"/jobs/{job.id}", done="saved"))


async def schedule_told(visit: Visit) -> Answer:
    """The schedule of the query in words and times: what the form shows while it is being typed."""
    query = visit.query
    fields = {name: query.get(name, "") for name in ("schedule", "timezone", "dst", "calendar", "viewer_zone")}
    told = tell_schedule(visit, fields, query.get("job_id", ""))
    return visit.site.fragment(visit, "schedule.html", told=told)


async def _wanted(visit: Visit, form: Form, before: JobView | None) -> tuple[JobSpec | None, Page]:
    """The job of a form, None if it is wrong; and the page that shows it with its preview, or with what is wrong."""
    fields = _kept(form)
    try:
        plain = from_form(form, before)
        wanted = convert(plain, JobSpec)
        define_job(wanted, job_id=NOWHERE if before is None else JobId(before.id), now=visit.servicer.wall())
    except InvalidInput as error:
        fields |= _uploaded(form)
        return None, _page(visit, fields, before, wrong=error)
    fields |= {name: value for name, value in to_fields(wanted).items() if name in ("task.code", "task.inputs")}
    return wanted, _page(visit, fields, before, wanted=wanted)


def _page(
    visit: Visit,
    fields: dict[str, str],
    job: JobView | None,
    *,
    wrong: DulyError | None = None,
    wanted: JobSpec | None = None,
) -> Page:
    changes: list[tuple[str, str]] = []
    if wanted is not None:
        old = "" if job is None else msgspec.json.format(msgspec.json.encode(sparse(job)), indent=2).decode()
        new = msgspec.json.format(msgspec.json.encode(sparse(wanted)), indent=2).decode()
        changes = [
            (line[0], line[2:]) for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+- "
        ]
    told = tell_schedule(visit, fields, "" if job is None else job.id)
    errors = {} if wrong is None else complaints(wrong)
    return Page(
        "job_form.html",
        "New job" if job is None else f"Edit {job.name or job.id}",
        {"fields": fields, "errors": errors, "valid": wrong is None},
        {
            "job": job,
            "wrong": wrong,
            "told": told,
            "wanted": wanted,
            "changes": changes,
            "same": all(sign == " " for sign, _ in changes),
            "curl": None if wanted is None else as_curl(wanted, job_id=None if job is None else job.id),
            "cli": None if wanted is None or job is not None else as_cli(wanted),
            "quick": QUICK,
            "error_at": _error_at(errors),
        },
        status=200 if wrong is None else wrong.status,
    )


def _error_at(errors: dict[str, str]) -> dict[str, str]:
    """Errors by the name of the form's field: `/task/argv/0` belongs to `task.argv`."""
    found: dict[str, str] = {}
    for pointer, detail in errors.items():
        parts = pointer.strip("/").split("/")
        deep = 2 if parts[0] in ("task", "retry", "keep") else 1
        found.setdefault(".".join(parts[:deep]), detail)
    return found


def tell_schedule(visit: Visit, fields: dict[str, str], job_id: str) -> dict[str, Any]:
    """The sentence, the next ten times in the job's zone and the viewer's, and the days on which clocks change."""
    text = fields.get("schedule", "")
    told: dict[str, Any] = {"wrong": "", "preview": None, "times": [], "days": [], "viewer_zone": ""}
    if not text.strip():
        return told
    try:
        spec = convert(
            {
                "schedule": text, "timezone": fields.get("timezone") or "UTC", "dst": fields.get("dst") or "cron",
                "count": 10, "calendar": fields.get("calendar", "").replace(",", " ").split(),
                "job_id": job_id if is_job_id(job_id) else NOWHERE,
            },
            PreviewSpec,
        )  # fmt: skip
        told["preview"] = found = visit.servicer.preview(spec)
        told["days"] = visit.servicer.clock_changes(spec) if found.kind in ("cron", "rrule") else []
    except InvalidInput as error:
        told["wrong"] = error.errors[0].detail if error.errors else error.detail
        return told
    viewer = _zone(fields.get("viewer_zone", ""))
    for item in found.items:
        there = None
        if viewer is not None and viewer.key != spec.timezone:
            moment = datetime.fromtimestamp(parse_instant(item.at) / SECOND, tz=UTC).astimezone(viewer)
            there = moment.strftime("%a %Y-%m-%d %H:%M:%S")
        told["times"].append((item, there))
    told["viewer_zone"] = "" if viewer is None or viewer.key == spec.timezone else viewer.key
    return told


def _zone(name: str) -> ZoneInfo | None:
    if _ZONE.fullmatch(name) is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _kept(form: Form) -> dict[str, str]:
    """What was typed, to be shown again."""
    fields = _empty()
    return {name: form.text(name, "" if name == "paused" else value) for name, value in fields.items()}


def _uploaded(form: Form) -> dict[str, str]:
    """Files that were stored already, so that they need not be chosen again."""
    found: dict[str, str] = {}
    if form.files.get("code"):
        found["task.code"] = form.files["code"][-1][1].digest
    inputs = [f"{name}={blob.digest}" for name, blob in form.files.get("inputs", [])]
    if inputs:
        found["task.inputs"] = "\n".join([*filter(None, form.text("task.inputs").split("\n")), *inputs])
    return found


def _empty() -> dict[str, str]:
    """The fields of all kinds of task, with the defaults."""
    fields: dict[str, str] = {"viewer_zone": "", "job_id": ""}
    for task in (
        {"kind": "http", "url": "https://", "method": "POST"},
        {"kind": "function", "name": "module:function"},
        {"kind": "command"},
    ):
        fields |= to_fields(convert({"task": task, "schedule": "0 2 * * *"}, JobSpec))
    return fields | {"task.url": "", "task.name": ""}


def _spec(job: JobView) -> JobSpec:
    return JobSpec(**{name: getattr(job, name) for name in JobSpec.__struct_fields__})


async def _job(visit: Visit) -> JobView:
    job_id = visit.call.path["job_id"]
    if not is_job_id(job_id):
        raise NotFound(f"there is no job {job_id[:80]!r}")
    return await visit.servicer.get_job(job_id, namespace=visit.namespace)
