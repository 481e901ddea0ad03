"""Every route with every role: who gets in, who does not, and what lies in another namespace."""

from __future__ import annotations

import httpx2
import pytest

from duly.core.instants import SECOND
from duly.core.tokens import Scope
from duly.faces.api import OPERATIONS
from duly.faces.http.operation import Operation
from duly.faces.tokens import revoke_token
from faces.api.harness import Api, command

JOB = "019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
IDS = {
    "{job_id}": JOB,
    "{version}": "1",
    "{run_id}": f"{JOB}@20261201T010000.000000Z",
    "{worker_id}": "w-1",
    "{digest}": f"sha256:{'0' * 64}",
    "{path:path}": "a/b.txt",
}
# The one list of who may do what, apart from the code: a change of scope has to be made twice.
EXPECTED = {
    "worker": {"beatWorker", "reportWorker", "listWorkerShards"},
    "everyone": {"healthz", "readyz", "openapi", "docs"},
    "read": {
        "listJobs", "getJobById", "getRunningJobs", "listRuns", "listJobRuns", "getRun", "listOutput", "getOutput",
        "getLog", "explainRun", "getBlob", "previewSchedule", "getStats", "listWorkers", "listShards", "streamEvents",
        "listWebhooks", "getJobBadge",
        "listJobVersions", "getJobVersion",
        "metrics", "version",
    },
    "submit": {"createJob", "createJobs", "triggerJob", "putBlob"},
    "operate": {
        "updateJobById", "deleteJobById", "pauseJob", "resumeJob", "bulkJobs", "cancelRun", "retryRun",
        "restoreJobVersion",
    },
}  # fmt: skip


def place(operation: Operation) -> str:
    path = operation.path
    for name, value in IDS.items():
        path = path.replace(name, value)
    return path


async def ask(client: httpx2.AsyncClient, operation: Operation, token: str | None) -> int:
    """The status of an operation, without a body: access comes before everything else."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with client.stream(operation.method, place(operation), headers=headers) as answer:
        assert answer.headers["x-request-id"]
        if answer.status_code in (401, 403):
            problem = await answer.aread()
            assert answer.headers["content-type"] == "application/problem+json", problem
            assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
        return answer.status_code


def test_every_operation_is_in_the_list_of_scopes() -> None:
    """And in the class where it is expected."""
    found: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        word = operation.scope.word if isinstance(operation.scope, Scope) else operation.scope
        found.setdefault(word, set()).add(operation.id)
    assert found == EXPECTED


@pytest.mark.parametrize(
    "role", ["none", "wrong", "expired", "revoked", "worker", "read", "submit", "operate", "admin"]
)
async def test_every_route_with_every_role(api: Api, role: str) -> None:
    """401 without a valid token, 403 below the scope, something else above it; open routes are open to all."""
    api.stop.set()  # so that the event stream ends at once
    token: str | None
    held: Scope | None = None
    if role in ("none", "wrong"):
        api.token("admin")
        token = None if role == "none" else f"duly_{'0' * 12}_{'0' * 64}"
    elif role == "expired":
        token = api.token("admin", expires_at=api.clock.wall())
    else:
        token = api.token("admin" if role == "revoked" else role)
        held = None if role == "revoked" else Scope.named(role)
    if role == "revoked":
        assert token is not None
        revoke_token(api.tokens, token.split("_")[1], now=api.clock.wall())
    for number, operation in enumerate(OPERATIONS):
        async with api.client(address=f"10.0.0.{number}") as client:
            status = await ask(client, operation, token)
        needed = operation.scope
        if not isinstance(needed, Scope):
            assert status in (200, 503), operation.id
        elif held is None:
            assert status == 401, operation.id
        elif held < needed or (needed is Scope.WORKER and held not in (Scope.WORKER, Scope.ADMIN)):
            assert status == 403, operation.id
        else:
            assert status in (200, 202, 204, 404, 415, 422, 201), operation.id


async def test_without_a_token_file_only_loopback_gets_in(api: Api) -> None:
    """From elsewhere every guarded route is 401."""
    for operation in OPERATIONS:
        if isinstance(operation.scope, Scope):
            async with api.client(address="192.0.2.7") as client:
                assert await ask(client, operation, None) == 401, operation.id


async def test_a_revoked_token_stops_within_seconds(api: Api) -> None:
    """A running server looks at the file again at most a second later."""
    token = api.token("read")
    async with api.client(authorization=f"Bearer {token}") as client:
        assert (await client.get("/v1/jobs")).status_code == 200
        revoke_token(api.tokens, token.split("_")[1], now=api.clock.wall())
        since = api.clock.monotonic()
        while (await client.get("/v1/jobs")).status_code == 200:
            assert api.clock.monotonic() - since < 5 * SECOND
            await api.clock.sleep(SECOND // 50)


async def test_tokens_elsewhere_than_in_the_header_do_not_count(api: Api) -> None:
    """Neither in the URL, nor as a cookie, nor by another scheme."""
    token = api.token("admin")
    async with api.client() as client:
        assert (await client.get(f"/v1/jobs?token={token}")).status_code == 401
        assert (await client.get("/v1/jobs", headers={"cookie": f"token={token}"})).status_code == 401
        assert (await client.get("/v1/jobs", headers={"authorization": f"Basic {token}"})).status_code == 401
        none = "eyJhbGciOiJub25lIn0.eyJzY29wZSI6ImFkbWluIn0."
        assert (await client.get("/v1/jobs", headers={"authorization": f"Bearer {none}"})).status_code == 401


async def test_a_token_reaches_its_namespaces_only(api: Api) -> None:
    """What lies elsewhere does not exist for it, by id, in lists, in bulk and in batches."""
    async with api.client() as local:
        foreign = (await local.post("/v1/jobs?namespace=blue", json=command("/bin/true"))).json()["id"]
        run = (await local.post(f"/v1/jobs/{foreign}/trigger")).json()["id"]
    token = api.token("admin", "green")
    async with api.client(authorization=f"Bearer {token}") as client:
        for method, path in [
            ("GET", f"/v1/jobs/{foreign}"),
            ("DELETE", f"/v1/jobs/{foreign}"),
            ("POST", f"/v1/jobs/{foreign}/pause"),
            ("POST", f"/v1/jobs/{foreign}/resume"),
            ("POST", f"/v1/jobs/{foreign}/trigger"),
            ("GET", f"/v1/jobs/{foreign}/runs"),
            ("GET", f"/v1/runs/{run}"),
            ("POST", f"/v1/runs/{run}/cancel"),
            ("POST", f"/v1/runs/{run}/retry"),
            ("GET", f"/v1/runs/{run}/explain"),
            ("GET", f"/v1/runs/{run}/log"),
            ("GET", f"/v1/runs/{run}/log?follow=true"),
            ("GET", f"/v1/runs/{run}/output"),
            ("GET", f"/v1/runs/{run}/output/x"),
        ]:
            assert (await client.request(method, path)).status_code == 404, path
            there = f"{path}{'&' if '?' in path else '?'}namespace=blue"
            assert (await client.request(method, there)).status_code == 403, there
        assert (await client.patch(f"/v1/jobs/{foreign}", json={"priority": 1})).status_code == 404
        assert (await client.get("/v1/jobs")).json()["items"] == []
        assert (await client.get("/v1/runs")).json()["items"] == []
        assert (await client.get("/v1/runs", params={"job_id": foreign})).json()["items"] == []
        bulk = {"filter": {"ids": [foreign]}, "action": "delete"}
        assert (await client.post("/v1/jobs/bulk", json=bulk)).json()["matched"] == 0
        batch = await client.post("/v1/jobs/batch", json={"jobs": [command("/bin/true")]})
        made = await client.get(f"/v1/jobs/{batch.json()['results'][0]['id']}")
        assert made.json()["namespace"] == "green"
        assert (await client.get("/v1/jobs", headers={"duly-namespace": "blue"})).status_code == 403


async def test_a_token_with_several_namespaces_has_to_name_one(api: Api) -> None:
    """A guess would put a job where nobody looks."""
    token = api.token("admin", "green", "blue")
    async with api.client(authorization=f"Bearer {token}") as client:
        refused = await client.post("/v1/jobs", json=command("/bin/true"))
        assert refused.status_code == 400
        made = await client.post("/v1/jobs?namespace=blue", json=command("/bin/true"))
        assert made.json()["namespace"] == "blue"


async def test_guessing_over_http_is_answered_with_429(api: Api) -> None:
    """A thousand wrong tokens, then Retry-After; the right one still works."""
    token = api.token("read")
    async with api.client(address="192.0.2.9") as client:
        statuses = []
        for number in range(1000):
            wrong = {"authorization": f"Bearer duly_{number:012x}_{'0' * 64}"}
            answer = await client.get("/v1/stats", headers=wrong)
            statuses.append(answer.status_code)
        assert statuses[:20] == [401] * 20
        assert set(statuses[20:]) == {429}
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert (await client.get("/v1/stats", headers={"authorization": f"Bearer {token}"})).status_code == 200
