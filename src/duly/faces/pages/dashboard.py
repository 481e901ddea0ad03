"""The table of pages, and how `boot` gets it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import BaseRoute

from duly.faces.http.answers import Answer
from duly.faces.http.settings import Context
from duly.faces.pages import (
    cluster,
    failures,
    forecast,
    home,
    job_form,
    jobs,
    lateness,
    runs,
    sign_in,
    timeline,
    versions,
)
from duly.faces.pages.live import live
from duly.faces.pages.sessions import Sessions
from duly.faces.pages.site import Page, Site
from duly.faces.pages.table import PageTable, Route
from duly.faces.pages.visit import Visit


def dashboard(
    *, key: bytes, wall: Callable[[], int], entropy: Callable[[int], bytes]
) -> Callable[[Context], BaseRoute]:
    """What `create_app` makes the pages with. `key` signs the sessions (`sessions.session_key`)."""

    def make(context: Context) -> BaseRoute:
        async def stream(visit: Visit) -> Answer:
            return await live(visit, table)

        async def nothing(_: Visit) -> Page:
            raise AssertionError

        async def icon(_: Visit) -> Answer:
            return table.site.files.reply("icon.svg", kept=False)

        routes = [
            *ROUTES,
            Route("GET", "/favicon.ico", "icon", icon, open=True),
            Route("GET", "/live", "live", stream),
            Route("GET", "/static/{mark}/{name:path}", "static", nothing),
        ]
        table = PageTable(Site(context, Sessions(key, wall=wall, entropy=entropy)), routes)
        return table

    return make


ROUTES = (
    Route("GET", "/", "home", home.home),
    Route("GET", "/jobs", "jobs", jobs.job_list),
    Route("POST", "/jobs/bulk", "jobs_bulk", jobs.bulk),
    Route("GET", "/jobs/new", "job_new", job_form.new_job),
    Route("POST", "/jobs/new", "job_new", job_form.submit_new),
    Route("GET", "/jobs/schedule", "job_schedule", job_form.schedule_told),
    Route("GET", "/jobs/{job_id}/edit", "job_edit", job_form.edit_job),
    Route("POST", "/jobs/{job_id}/edit", "job_edit", job_form.submit_edit),
    Route("GET", "/jobs/{job_id}/versions", "job_versions", versions.version_page),
    Route("POST", "/jobs/{job_id}/versions/{version}/restore", "job_restore", versions.restore),
    Route("GET", "/jobs/{job_id}", "job", jobs.job_page),
    Route("POST", "/jobs/{job_id}/{action}", "job_act", jobs.act),
    Route("GET", "/runs", "runs", runs.run_list),
    Route("GET", "/runs/{run_id}", "run", runs.run_page),
    Route("GET", "/runs/{run_id}/log", "run_log", runs.download_log),
    Route("GET", "/runs/{run_id}/files/{path:path}", "run_file", runs.download_file),
    Route("GET", "/runs/{run_id}/image/{path:path}", "run_image", runs.image),
    Route("POST", "/runs/{run_id}/{action}", "run_act", runs.act),
    Route("GET", "/lateness", "lateness", lateness.lateness),
    Route("GET", "/failures", "failures", failures.failures),
    Route("POST", "/failures/{fingerprint}/{action}", "failures_act", failures.act),
    Route("GET", "/timeline", "timeline", timeline.timeline),
    Route("GET", "/forecast", "forecast", forecast.forecast),
    Route("GET", "/cluster", "cluster", cluster.cluster),
    Route("POST", "/cluster/workers/{worker}/{action}", "cluster_rest", cluster.rest),
    Route("GET", "/sign-in", "sign_in", sign_in.sign_in_page, open=True),
    Route("POST", "/sign-in", "sign_in", sign_in.sign_in, open=True),
    Route("POST", "/sign-out", "sign_out", sign_in.sign_out, open=True),
)
