"""Jobs over HTTP: made once, changed only as they were read, listed page by page."""

from __future__ import annotations

import json

import httpx2
import pytest

from faces.api.harness import Api, command

SLEEPY = command("/bin/true") | {"schedule": "every 15m"}


async def make(client: httpx2.AsyncClient, **fields: object) -> dict[str, object]:
    answer = await client.post("/v1/jobs", json=SLEEPY | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_job_is_made_and_read(client: httpx2.AsyncClient) -> None:
    """201 with Location and ETag; reading it gives the same document; 304 for who has it."""
    made = await client.post("/v1/jobs", json=SLEEPY | {"name": "nightly", "labels": {"team": "ops"}})
    assert made.status_code == 201
    assert made.headers["etag"] == '"1"'
    assert made.headers["location"] == f"/v1/jobs/{made.json()['id']}"
    read = await client.get(made.headers["location"])
    assert read.json() == made.json()
    assert read.headers["etag"] == '"1"'
    for tag in ('"1"', 'W/"1"', '"0", "1"', "*"):
        again = await client.get(made.headers["location"], headers={"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", '"1"')
    assert (await client.get(made.headers["location"], headers={"if-none-match": '"2"'})).status_code == 200


async def test_the_same_key_and_body_find_the_first_job(client: httpx2.AsyncClient) -> None:
    """However the body is written; another body is refused, and so is a key that is none."""
    key = {"idempotency-key": "report-1", "content-type": "application/json"}
    first = await client.post("/v1/jobs", json=SLEEPY, headers=key)
    spelled = json.dumps({"priority": 5, "schedule": "every 15m", "task": SLEEPY["task"]}, indent=4)
    again = await client.post("/v1/jobs", content=spelled, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    other = await client.post("/v1/jobs", json=SLEEPY | {"priority": 6}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    elsewhere = await client.post("/v1/jobs?namespace=other", json=SLEEPY | {"priority": 6}, headers=key)
    assert elsewhere.status_code == 201
    for bad in ("", "two words", "x" * 256):
        refused = await client.post("/v1/jobs", json=SLEEPY, headers={"idempotency-key": bad})
        assert (refused.status_code, refused.json()["code"]) == (400, "malformed")


async def test_a_change_counts_only_for_the_version_that_was_read(client: httpx2.AsyncClient) -> None:
    """If-Match with an older ETag is 412 and changes nothing; a list of tags holds if one does."""
    path = f"/v1/jobs/{(await make(client))['id']}"
    patch = {"content-type": "application/merge-patch+json"}
    changed = await client.patch(path, content=b'{"priority": 9}', headers={"if-match": '"1"', **patch})
    assert (changed.status_code, changed.headers["etag"], changed.json()["priority"]) == (200, '"2"', 9)
    late = await client.patch(path, json={"priority": 1}, headers={"if-match": '"1"'})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    listed = await client.patch(path, json={"priority": 8}, headers={"if-match": '"7", "2"'})
    assert (listed.status_code, listed.headers["etag"]) == (200, '"3"')
    for tag in ('"7", "8"', 'W/"3"', '"three"'):
        assert (await client.delete(path, headers={"if-match": tag})).status_code == 412
    assert (await client.delete(path, headers={"if-match": "3"})).status_code == 400
    assert (await client.get(path)).json()["priority"] == 8
    gone = await client.delete(path, headers={"if-match": "*"})
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.get(path)).json()["state"] == "deleted"


async def test_a_patch_can_be_refused_with_the_field(client: httpx2.AsyncClient) -> None:
    """Read-only, unknown and bad fields are named by pointers."""
    path = f"/v1/jobs/{(await make(client))['id']}"
    for patch, pointer in [
        ({"id": "x"}, "/id"),
        ({"priority": 11}, "/priority"),
        ({"nonsense": 1}, "/nonsense"),
        ({"retry": {"base": "soon"}}, "/retry/base"),
        ({"schedule": "0 0 31 2 *"}, "/schedule"),
    ]:
        answer = await client.patch(path, json=patch)
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert (await client.get(path)).headers["etag"] == '"1"'


async def test_pausing_and_resuming(client: httpx2.AsyncClient) -> None:
    """Each is a new version."""
    path = f"/v1/jobs/{(await make(client))['id']}"
    paused = await client.post(f"{path}/pause")
    assert (paused.json()["state"], paused.headers["etag"]) == ("paused", '"2"')
    resumed = await client.post(f"{path}/resume")
    assert (resumed.json()["state"], resumed.headers["etag"]) == ("active", '"3"')


async def test_lists_go_page_by_page(client: httpx2.AsyncClient) -> None:
    """The Link header and `next` lead on, with the filters kept, until every job was shown once."""
    for number in range(5):
        await make(client, name=f"n{number}", labels={"team": "ops" if number % 2 else "dev"})
    await make(client, name="other")
    seen: list[str] = []
    url = "/v1/jobs?q=n&limit=2&order=-name"
    while url:
        page = await client.get(url)
        assert page.status_code == 200, page.text
        seen += [job["name"] for job in page.json()["items"]]
        link = page.headers.get("link")
        assert (link is None) == (page.json()["next"] is None)
        assert link is None or link.endswith('>; rel="next"')
        url = "" if link is None else link[1 : link.index(">")]
    assert seen == ["n4", "n3", "n2", "n1", "n0"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("label=team:ops", ["y"]),
        ("label=team:ops&label=zone:eu", ["y"]),
        ("label=team:ops&label=zone:us", []),
        ("label=team:", []),
        ("name=x", ["x"]),
        ("state=paused", ["x"]),
        ("state=active", ["y"]),
        ("task=http", []),
        ("schedule=every%2015m", ["x", "y"]),
        ("q=X", ["x"]),
    ],
)
async def test_filters(client: httpx2.AsyncClient, query: str, names: list[str]) -> None:
    """Every filter given must hold."""
    first = await make(client, name="x", labels={"team": "dev"})
    await client.post(f"/v1/jobs/{first['id']}/pause")
    await make(client, name="y", labels={"team": "ops", "zone": "eu"})
    page = (await client.get(f"/v1/jobs?{query}")).json()
    assert [job["name"] for job in page["items"]] == names


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/query/limit"),
        ("limit=1001", "/query/limit"),
        ("limit=ten", "/query/limit"),
        ("limit=1&limit=2", "/query/limit"),
        ("label=team", "/query/label/0"),
        ("order=size", "/query/order"),
        ("state=running", "/query/state"),
        ("task=null", "/query/task"),
        ("color=red", "/query/color"),
        ("namespace=No", "/query/namespace"),
        ("cursor=%3Cscript%3E", "/query/cursor"),
    ],
)
async def test_a_bad_filter_is_named(client: httpx2.AsyncClient, query: str, pointer: str) -> None:
    """Unknown parameters are refused too, so that a typo does not find everything."""
    answer = await client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_sql_in_a_filter_is_text(client: httpx2.AsyncClient) -> None:
    """Quotes and wildcards find what they say."""
    await make(client, name="100% '; drop table job; --")
    for q, found in [("%", 1), ("'; drop", 1), ("_", 0), ("0% '", 1), ('"', 0)]:
        page = (await client.get("/v1/jobs", params={"q": q})).json()
        assert len(page["items"]) == found, q
    assert (await client.get("/v1/jobs", params={"order": "name; drop table job"})).status_code == 422
    assert (await client.get("/v1/jobs", params={"cursor": "WyJqb2IiLCAiJzsgZHJvcCJd"})).status_code in (200, 400)


async def test_a_batch_tells_each_job_its_fate(client: httpx2.AsyncClient) -> None:
    """In order, with pointers into the batch; a bad job does not stop the others."""
    bodies = [SLEEPY, SLEEPY | {"priority": 12}, 7, SLEEPY | {"schedule": "nonsense"}, SLEEPY]
    answer = await client.post("/v1/jobs/batch", json={"jobs": bodies})
    assert answer.status_code == 200
    result = answer.json()
    assert (result["created"], result["failed"]) == (2, 3)
    assert [item["status"] for item in result["results"]] == [201, 422, 422, 422, 201]
    assert result["results"][1]["error"]["errors"][0]["pointer"] == "/jobs/1/priority"
    assert len((await client.get("/v1/jobs")).json()["items"]) == 2


async def test_a_batch_has_at_most_ten_thousand(client: httpx2.AsyncClient) -> None:
    """Ten thousand and one are refused as a whole."""
    answer = await client.post("/v1/jobs/batch", json={"jobs": [1] * 10_001})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/jobs")
    answer = await client.post("/v1/jobs/batch", json={"jobs": [1] * 10_000})
    assert answer.json()["failed"] == 10_000


async def test_bulk_actions_need_a_filter(client: httpx2.AsyncClient) -> None:
    """A dry run counts; without a filter nothing is done."""
    for number in range(3):
        await make(client, labels={"n": str(number % 2)})
    bulk = {"filter": {"label": ["n:0"]}, "action": "pause"}
    dry = (await client.post("/v1/jobs/bulk", json=bulk | {"dry_run": True})).json()
    assert (dry["matched"], dry["changed"]) == (2, 0)
    done = (await client.post("/v1/jobs/bulk", json=bulk)).json()
    assert (done["matched"], done["changed"]) == (2, 2)
    assert len((await client.get("/v1/jobs?state=paused")).json()["items"]) == 2
    assert (await client.post("/v1/jobs/bulk", json={"filter": {}, "action": "delete"})).status_code == 422
    odd = await client.post("/v1/jobs/bulk", json={"filter": {"label": ["n"]}, "action": "pause"})
    assert odd.json()["errors"][0]["pointer"] == "/filter/label/0"


async def test_a_schedule_can_be_tried_out(client: httpx2.AsyncClient) -> None:
    """Instants, or what is wrong with it."""
    asked = {"schedule": "0 2 * * *", "timezone": "Europe/Berlin", "from": "2026-12-01T00:00:00Z", "count": 2}
    answer = (await client.post("/v1/schedules/preview", json=asked)).json()
    assert [item["at"] for item in answer["items"]] == ["2026-12-01T01:00:00.000000Z", "2026-12-02T01:00:00.000000Z"]
    refused = (await client.post("/v1/schedules/preview", json={"schedule": "0 25 * * *"})).json()
    assert (refused["status"], refused["code"]) == (422, "invalid_schedule")
    assert refused["errors"][0]["pointer"] == "/schedule"


async def test_a_trigger_opens_a_run(client: httpx2.AsyncClient) -> None:
    """202 with the run's place; with a wait that is too short, 202 with what was granted."""
    path = f"/v1/jobs/{(await make(client))['id']}"
    run = await client.post(f"{path}/trigger")
    assert (run.status_code, run.json()["state"], run.json()["manual"]) == (202, "waiting", True)
    assert run.headers["location"] == f"/v1/runs/{run.json()['id']}"
    assert "preference-applied" not in run.headers
    waited = await client.post(f"{path}/trigger", headers={"prefer": "respond-async, wait=0"})
    assert (waited.status_code, waited.headers["preference-applied"]) == (202, "wait=0")
    runs = (await client.get(f"{path}/runs?state=waiting,running")).json()["items"]
    assert len(runs) == 3
    since = run.json()["scheduled_at"]
    mine = await client.get("/v1/runs", params={"job_id": path[9:], "until": since, "order": "scheduled"})
    assert mine.json()["items"] == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=waiting,gone", "/query/state/1"),
        ("since=yesterday", "/query/since"),
        ("until=2026-12-01T09:00:00", "/query/until"),
        ("late=perhaps", "/query/late"),
        ("order=created", "/query/order"),
    ],
)
async def test_a_bad_run_filter_is_named(client: httpx2.AsyncClient, query: str, pointer: str) -> None:
    """As for jobs."""
    answer = await client.get(f"/v1/runs?{query}")
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_unknown_things_are_not_found(client: httpx2.AsyncClient) -> None:
    """Ids that could be, and ids that could not."""
    job = "019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
    for path in (
        f"/v1/jobs/{job}",
        "/v1/jobs/nonsense",
        "/v1/jobs/..%2f..%2fetc",
        "/v1/jobs/%00",
        f"/v1/jobs/{job}/runs",
        f"/v1/runs/{job}@20261201T010000.000000Z",
        "/v1/runs/x@y",
        f"/v1/runs/{job}@20261201T010000.000000Z/log?follow=true",
        "/v1/blobs/sha256:00",
        f"/v1/blobs/sha256:{'0' * 64}",
        "/v1/jobs/",
        "/nothing",
    ):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


async def test_namespaces_keep_jobs_apart(client: httpx2.AsyncClient) -> None:
    """A job of another namespace does not exist; the header says the same as the parameter."""
    made = await client.post("/v1/jobs?namespace=blue", json=SLEEPY)
    assert made.json()["namespace"] == "blue"
    path = made.headers["location"]
    assert (await client.get(f"{path}?namespace=green")).status_code == 404
    assert (await client.get(path, headers={"duly-namespace": "green"})).status_code == 404
    assert (await client.get(path, headers={"duly-namespace": "blue"})).status_code == 200
    assert (await client.get(path)).status_code == 200
    for method, tail in [("DELETE", ""), ("POST", "/pause"), ("POST", "/trigger"), ("GET", "/runs")]:
        assert (await client.request(method, f"{path}{tail}?namespace=green")).status_code == 404
    assert [len((await client.get(f"/v1/jobs?namespace={name}")).json()["items"]) for name in ("blue", "green")] == [
        1,
        0,
    ]


async def test_readiness_names_what_is_missing(api: Api, client: httpx2.AsyncClient) -> None:
    """Without a scheduler and a worker the servicer is alive and not ready."""
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "no scheduler" in answer.json()["detail"]
    for path in ("/v1/stats", "/v1/workers", "/v1/shards", "/version", "/metrics", "/v1/jobs/running"):
        assert (await client.get(path)).status_code == 200, path
    assert 'duly_http_requests_total{operation="readyz",status="503"} 1.0' in (await client.get("/metrics")).text


async def test_a_badge_is_an_image_of_its_own_tag(client: httpx2.AsyncClient) -> None:
    """It is asked for again by its ETag, which stays while nothing shown changes; what a job is not, has none."""
    job = (await client.post("/v1/jobs", json=command("true", name="<nightly>", schedule="in 1h"))).json()
    path = f"/v1/jobs/{job['id']}/badge.svg"
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert "&lt;nightly&gt;: no run yet" in answer.text
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("private")
    tag = answer.headers["etag"]
    assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
    await client.patch(f"/v1/jobs/{job['id']}", json={"priority": 9})
    assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
    await client.patch(f"/v1/jobs/{job['id']}", json={"name": "weekly"})
    assert (await client.get(path, headers={"if-none-match": tag})).status_code == 200
    missing = await client.get("/v1/jobs/019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b/badge.svg")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
