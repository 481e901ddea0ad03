"""The OpenAPI document and its page: complete, whole, and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import httpx2
import msgspec

from duly.faces.api import OPERATIONS, openapi_document

DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi_document())
# API.md's table: method, path and operation id are fixed.
TABLE = """
POST /v1/jobs createJob
POST /v1/jobs/batch createJobs
GET /v1/jobs/{job_id} getJobById
PATCH /v1/jobs/{job_id} updateJobById
DELETE /v1/jobs/{job_id} deleteJobById
GET /v1/jobs listJobs
GET /v1/jobs/running getRunningJobs
POST /v1/jobs/{job_id}/trigger triggerJob
GET /v1/jobs/{job_id}/versions listJobVersions
GET /v1/jobs/{job_id}/versions/{version} getJobVersion
POST /v1/jobs/{job_id}/versions/{version}/restore restoreJobVersion
POST /v1/jobs/{job_id}/pause pauseJob
POST /v1/jobs/{job_id}/resume resumeJob
POST /v1/jobs/bulk bulkJobs
GET /v1/runs listRuns
GET /v1/jobs/{job_id}/runs listJobRuns
GET /v1/runs/{run_id} getRun
POST /v1/runs/{run_id}/cancel cancelRun
POST /v1/runs/{run_id}/retry retryRun
GET /v1/runs/{run_id}/output listOutput
GET /v1/runs/{run_id}/output/{path} getOutput
GET /v1/runs/{run_id}/log getLog
GET /v1/runs/{run_id}/explain explainRun
POST /v1/blobs putBlob
GET /v1/blobs/{digest} getBlob
POST /v1/schedules/preview previewSchedule
GET /v1/stats getStats
GET /v1/workers listWorkers
GET /v1/shards listShards
GET /v1/events streamEvents
"""


def test_every_operation_of_the_contract_is_there() -> None:
    """With its method, path and id."""
    found = {
        f"{method.upper()} {path} {operation['operationId']}"
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert set(TABLE.strip().splitlines()) <= found
    assert len({operation.id for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_reference_leads_somewhere() -> None:
    """And every component is referred to."""
    text = openapi_document().decode()
    wanted = set(re.findall(r'"\$ref":"#/components/(\w+)/([\w-]+)"', text))
    present = {(kind, name) for kind in ("schemas", "responses", "headers") for name in DOCUMENT["components"][kind]}
    assert wanted <= present
    assert present <= wanted


def test_every_guarded_operation_says_its_scope_and_its_refusals() -> None:
    """401, 403 and 429 go with a scope; what is open has none of them."""
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            guarded = "x-duly-scope" in operation
            assert guarded == ({"401", "403", "429"} <= set(operation["responses"])), operation["operationId"]
            assert "503" in operation["responses"]


async def test_answers_are_compressed_for_those_who_take_it(client: httpx2.AsyncClient) -> None:
    """Large JSON without an ETag; what is small, tagged or streamed is left as it is."""
    packed = await client.get("/openapi.json", headers={"accept-encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "accept-encoding")
    assert packed.content == openapi_document()
    assert int(packed.headers["content-length"]) < len(openapi_document()) / 4
    for accept in ("", "identity", "gzip;q=0", "br"):
        plain = await client.get("/openapi.json", headers={"accept-encoding": accept})
        assert "content-encoding" not in plain.headers
        assert plain.headers["content-length"] == str(len(openapi_document()))
    small = await client.get("/version", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers


class Page(HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value or "")


async def test_the_page_stands_by_itself(client: httpx2.AsyncClient) -> None:
    """No scripts, nothing from elsewhere; its one style is named by its hash, and its links lead somewhere."""
    answer = await client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert not {"script", "img", "iframe", "link", "form", "object"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    style = answer.text.split("<style>")[1].split("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    for link in page.links:
        assert link == "/openapi.json" or link.removeprefix("#") in page.ids, link
    assert {operation.id for operation in OPERATIONS} <= page.ids
