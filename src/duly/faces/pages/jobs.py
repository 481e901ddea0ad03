"""The list of jobs with bulk actions, and one job with what can be done to it."""

from __future__ import annotations

import msgspec

from duly.core.contract import BulkSpec, PreviewSpec
from duly.core.errors import DulyError, InvalidInput, NotFound
from duly.core.job_ids import is_job_id
from duly.core.model import JobId
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer
from duly.faces.pages.drawing import spark_paths
from duly.faces.pages.filters import WORDS, bulk_filter, job_query
from duly.faces.pages.same import as_cli, as_curl
from duly.faces.pages.site import Page
from duly.faces.pages.visit import SeeOther, Visit
from duly.ports import RunQuery

PAGE = 50
VERSIONS = 5  # shown beside the definition
ACTIONS = {
    "pause": Scope.OPERATE,
    "resume": Scope.OPERATE,
    "trigger": Scope.SUBMIT,
    "delete": Scope.OPERATE,
}
DONE = {"pause": "paused", "resume": "resumed", "trigger": "triggered", "delete": "deleted"}


async def job_list(visit: Visit) -> Page:
    """A page of jobs that the filter finds."""
    text = visit.query.get("q", "")
    order = visit.choice("order", ("-created", "created", "name", "-name"))
    wrong = ""
    query = job_query("", namespace=visit.namespace, order=order, with_deleted=False, limit=PAGE)
    try:
        query = job_query(
            text,
            namespace=visit.namespace,
            order=order,
            limit=PAGE,
            cursor=visit.query.get("cursor") or None,
            with_deleted="is:deleted" in text or "state:deleted" in text,
        )
        found = await visit.servicer.job_summaries(query)
    except InvalidInput as error:
        wrong = error.errors[0].detail if error.errors else error.detail
        found = await visit.servicer.job_summaries(query)
    labels = {f"{key}={value}" for item in found.items for key, value in item.job.labels.items() if len(value) < 60}
    known = [*WORDS, *sorted(labels)[:60]]
    return Page(
        "jobs.html",
        "Jobs",
        {"jobs": found},
        {
            "sparks": {item.job.id: spark_paths(item.outcomes) for item in found.items},
            "q": text,
            "order": order,
            "wrong": wrong,
            "known": msgspec.json.encode(known).decode(),
            "actions": [action for action, scope in ACTIONS.items() if visit.may(scope)],
        },
        parts=("jobs",),
        status=422 if wrong else 200,
    )


async def bulk(visit: Visit) -> Page | Answer:
    """First the count, then, once that is confirmed, the action."""
    form = await visit.form(Scope.SUBMIT)
    action = form.text("action")
    if action not in ACTIONS:
        raise InvalidInput.at("/action", "one of pause, resume, trigger, delete")
    visit.need(ACTIONS[action])
    ids, text = form.all("ids"), form.text("q")
    wanted = {"ids": ids} if ids else bulk_filter(text)
    if not wanted:
        raise InvalidInput("mark jobs, or write a filter; all jobs at once is never meant")
    spec = msgspec.convert({"filter": wanted, "action": action, "dry_run": "sure" not in form}, BulkSpec)
    result = await visit.servicer.bulk(spec, namespace=visit.namespace)
    if not spec.dry_run and not result.errors:
        raise SeeOther(visit.url("/jobs", q=text, done="bulk", n=result.changed))
    names = []
    for job_id in result.ids[:20]:
        job = await visit.servicer.get_job(job_id, namespace=visit.namespace)
        names.append((job_id, job.name or job_id))
    return Page("bulk.html", f"{action.capitalize()} jobs", {"result": result}, {"ids": ids, "q": text, "names": names})


async def job_page(visit: Visit) -> Page:
    """A job: its definition and the newest versions of it, its next times, its runs."""
    job_id = _id(visit)
    servicer = visit.servicer
    job = await servicer.get_job(job_id, namespace=visit.namespace)
    runs = await servicer.list_runs(RunQuery(job_id=JobId(job_id), limit=30, cursor=visit.query.get("cursor") or None))
    outcomes = await servicer.outcomes(job_id)
    versions = await servicer.list_versions(job_id, namespace=visit.namespace, limit=VERSIONS)
    preview = None
    if job.state in ("active", "paused"):
        try:
            preview = servicer.preview(
                PreviewSpec(
                    schedule=job.schedule, timezone=job.timezone, dst=job.dst, count=10, start=job.start, end=job.end,
                    calendar=job.calendar, job_id=job.id,
                )
            )  # fmt: skip
        except DulyError:
            preview = None  # a one-time schedule that is over has no next time
    return Page(
        "job.html",
        job.name or job.id,
        {"job": job, "runs": runs, "preview": preview, "outcomes": outcomes, "versions": versions},
        {"spark": spark_paths(outcomes), "cli": as_cli(job), "curl": as_curl(job)},
        parts=("facts", "job_runs"),
        jobs=frozenset({job_id}),
    )


async def act(visit: Visit) -> Answer:
    """Pause, resume, trigger or delete one job."""
    job_id, action = _id(visit), visit.call.path["action"]
    if action not in ACTIONS:
        raise NotFound("there is nothing at this path")
    await visit.form(ACTIONS[action])
    servicer, namespace = visit.servicer, visit.namespace
    if action == "trigger":
        run = await servicer.trigger_job(job_id, namespace=namespace)
        raise SeeOther(visit.url(f"/runs/{run.id}", done="triggered"))
    if action == "delete":
        await servicer.delete_job(job_id, namespace=namespace)
    else:
        await (servicer.pause_job if action == "pause" else servicer.resume_job)(job_id, namespace=namespace)
    raise SeeOther(visit.url(f"/jobs/{job_id}", done=DONE[action]))


def _id(visit: Visit) -> str:
    job_id = visit.call.path["job_id"]
    if not is_job_id(job_id):
        raise NotFound(f"there is no job {job_id[:80]!r}")
    return job_id
