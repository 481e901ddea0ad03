"""Versions of a job's definition over HTTP: kept, told apart from other changes, read, restored."""

from __future__ import annotations

from typing import Any

import httpx2

from faces.api.harness import Api, command

SLEEPY = command("/bin/true") | {"schedule": "@yearly"}


async def make(client: httpx2.AsyncClient, **fields: object) -> str:
    answer = await client.post("/v1/jobs", json=SLEEPY | fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def listed(client: httpx2.AsyncClient, job: str, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get(f"/v1/jobs/{job}/versions", params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_each_change_of_the_definition_is_a_version(client: httpx2.AsyncClient) -> None:
    """Pausing, resuming, triggering and changing nothing are none; the newest comes first."""
    job = await make(client, name="a")
    at = f"/v1/jobs/{job}"
    made = (await client.get(at)).json()
    [only] = await listed(client, job)
    assert (only["version"], only["at"], only["by"], only["changed"]) == (1, made["created_at"], None, None)
    assert only["current"] is True
    for action in ("pause", "trigger", "resume"):
        assert (await client.post(f"{at}/{action}")).status_code in (200, 202)
    assert (await client.patch(at, json={"name": "a"})).json()["version"] == 4
    assert [each["version"] for each in await listed(client, job)] == [1]
    changed = (await client.patch(at, json={"name": "b", "retry": {"base": "3s"}, "paused": True})).json()
    assert (await client.patch(at, json={"schedule": "@daily"})).json()["version"] == 6
    found = await listed(client, job)
    assert [(each["version"], each["changed"], each["current"]) for each in found] == [
        (6, ["schedule"], True),
        (5, ["name", "retry.base"], False),
        (1, None, False),
    ]
    assert found[1]["at"] == changed["updated_at"]
    definition = {name: value for name, value in changed.items() if name in found[1]["definition"]}
    assert found[1]["definition"] == definition
    assert not {"paused", "state", "id", "version"} & found[1]["definition"].keys()


async def test_versions_come_in_pages(client: httpx2.AsyncClient) -> None:
    """Each knows what it changed, at the edge of a page as well."""
    job = await make(client)
    for priority in (6, 7, 8):
        await client.patch(f"/v1/jobs/{job}", json={"priority": priority})
    first = await client.get(f"/v1/jobs/{job}/versions?limit=2")
    assert [each["version"] for each in first.json()["items"]] == [4, 3]
    assert first.json()["items"][1]["changed"] == ["priority"]
    second = await client.get(first.links["next"]["url"])
    assert [each["version"] for each in second.json()["items"]] == [2, 1]
    assert second.json()["next"] is None
    runs = (await client.get("/v1/jobs?limit=1")).json()["next"] or "WyJydW4iLDEsImEiXQ"
    for cursor in ("x", runs):
        assert (await client.get(f"/v1/jobs/{job}/versions?cursor={cursor}")).status_code == 400


async def test_the_definition_of_any_version_is_found(client: httpx2.AsyncClient) -> None:
    """Also of one that changed something else: what was in force then."""
    job = await make(client)
    await client.post(f"/v1/jobs/{job}/pause")
    await client.patch(f"/v1/jobs/{job}", json={"priority": 9})
    await client.post(f"/v1/jobs/{job}/resume")
    found = [(await client.get(f"/v1/jobs/{job}/versions/{number}")).json() for number in (1, 2, 3, 4)]
    assert [(each["version"], each["definition"]["priority"]) for each in found] == [(1, 5), (1, 5), (3, 9), (3, 9)]
    assert [each["current"] for each in found] == [False, False, True, True]
    assert found[2]["changed"] == ["priority"]
    for number in ("0", "5", "x", "-1", "1.0", "\u0661", "9" * 30):
        assert (await client.get(f"/v1/jobs/{job}/versions/{number}")).status_code == 404, number


async def test_a_version_is_restored_as_a_new_one(client: httpx2.AsyncClient) -> None:
    """Whole: what was added since goes. Paused stays paused; If-Match is honoured; a deleted job is refused."""
    job = await make(client, labels={"team": "ops"})
    at = f"/v1/jobs/{job}"
    await client.patch(at, json={"labels": {"team": "web", "more": "x"}, "task": {"env": {"A": "1"}}})
    await client.post(f"{at}/pause")
    stale = await client.post(f"{at}/versions/1/restore", headers={"if-match": '"2"'})
    assert stale.status_code == 412
    back = await client.post(f"{at}/versions/1/restore", headers={"if-match": '"3"'})
    assert (back.status_code, back.headers["etag"]) == (200, '"4"')
    assert (back.json()["labels"], back.json()["task"]["env"], back.json()["paused"]) == ({"team": "ops"}, {}, True)
    found = await listed(client, job)
    assert [each["version"] for each in found] == [4, 2, 1]
    assert found[0]["definition"] == found[2]["definition"]
    assert (await client.post(f"{at}/versions/9/restore")).status_code == 404
    await client.delete(at)
    assert (await client.post(f"{at}/versions/1/restore")).status_code == 409
    assert [each["version"] for each in await listed(client, job)] == [4, 2, 1]  # it stays with the history


async def test_the_files_of_a_version_are_kept_with_it(api: Api, client: httpx2.AsyncClient) -> None:
    """So that it can be restored; without them it is refused as any change would be."""
    blobs = [(await client.post("/v1/blobs", content=text)).json()["digest"] for text in (b"one", b"two")]
    task = {"kind": "command", "argv": ["./task"], "code": blobs[0]}
    job = await make(client, task=task)
    await client.patch(f"/v1/jobs/{job}", json={"task": {"code": blobs[1]}})
    assert (await api.store.prune(100)).orphans == ()
    assert await api.store.referred(blobs) == set(blobs)
    back = await client.post(f"/v1/jobs/{job}/versions/1/restore")
    assert back.json()["task"]["code"] == blobs[0]
    await api.blobs.delete([blobs[1]], unused_for=0)
    refused = await client.post(f"/v1/jobs/{job}/versions/2/restore")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/task/code")


async def test_a_version_names_the_token_that_it_came_with(api: Api) -> None:
    """By its key id: of one job, of a batch, of a change and of a restored one."""
    maker, keeper = api.token("submit"), api.token("operate", "default")
    ids = [token.split("_")[1] for token in (maker, keeper)]
    async with api.client(authorization=f"Bearer {maker}") as client:
        one = await make(client)
        batch = await client.post("/v1/jobs/batch", json={"jobs": [SLEEPY]})
    two = batch.json()["results"][0]["id"]
    async with api.client(authorization=f"Bearer {keeper}") as client:
        await client.patch(f"/v1/jobs/{one}", json={"name": "x"})
        await client.post(f"/v1/jobs/{one}/versions/1/restore")
        assert [each["by"] for each in await listed(client, one)] == [ids[1], ids[1], ids[0]]
        assert [each["by"] for each in await listed(client, two)] == [ids[0]]


async def test_versions_of_another_namespace_are_not_there(api: Api) -> None:
    """Neither listed, nor read, nor restored."""
    async with api.client() as local:
        job = (await local.post("/v1/jobs?namespace=blue", json=SLEEPY)).json()["id"]
    async with api.client(authorization=f"Bearer {api.token('operate', 'green')}") as client:
        assert (await client.get(f"/v1/jobs/{job}/versions")).status_code == 404
        assert (await client.get(f"/v1/jobs/{job}/versions/1")).status_code == 404
        assert (await client.post(f"/v1/jobs/{job}/versions/1/restore")).status_code == 404
