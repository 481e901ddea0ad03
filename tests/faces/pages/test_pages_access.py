"""Who gets in: tokens, sessions, CSRF tokens, origins, hosts, namespaces, scopes; and what every answer carries."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from duly.boot import assemble
from duly.core.contract import CommandSpec, JobSpec
from duly.core.definition import define_job
from duly.core.instants import HOUR, SECOND
from duly.core.job_ids import mint_job_id
from duly.core.tokens import Scope
from duly.faces.api import Access, HttpSettings, create_app
from duly.faces.pages.dashboard import dashboard
from duly.faces.pages.sessions import Sessions, session_key
from duly.faces.tokens import TokenFile, create_token, revoke_token
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry
from faces.api.harness import served

KEY = b"k" * 32


class House:
    """Pages over a real servicer, and browsers without scripts."""

    def __init__(self, node: Any, app: Any, tokens: Path, wall: int) -> None:
        self.node = node
        self.app = app
        self.tokens = tokens
        self.wall = wall

    def browser(self, *, address: str = "127.0.0.1", scheme: str = "http") -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.app, client=(address, 50_000))
        return httpx2.AsyncClient(transport=transport, base_url=f"{scheme}://localhost:7350")

    def token(self, scope: str, *namespaces: str) -> str:
        return create_token(
            self.tokens,
            entropy=os.urandom(38),
            scope=Scope.named(scope),
            namespaces=namespaces or ("*",),
            now=self.wall,
        )[0]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Jobs in two namespaces, no token yet."""
    node = assemble(Settings(dir=str(tmp_path / "duly"), slots=1, grace=SECOND), FunctionRegistry())
    await node.start()
    app = create_app(
        node.servicer,
        access=Access(TokenFile(tmp_path / "tokens.json", monotonic=lambda: 10**15 + node.clock.monotonic() * 1000),
                      clock=node.clock),
        telemetry=node.telemetry,
        settings=HttpSettings(),
        pages=dashboard(key=KEY, wall=node.clock.wall, entropy=os.urandom),
    )  # fmt: skip
    yield House(node, app, tmp_path / "tokens.json", node.clock.wall())
    await node.stop()


def csrf_of(html: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', html)
    assert found is not None
    return found.group(1)


async def sign_in(browser: httpx2.AsyncClient, token: str, *, next_: str = "/") -> httpx2.Response:
    page = await browser.get("/sign-in", params={"next": next_})
    form = {"csrf": csrf_of(page.text), "token": token, "next": next_}
    return await browser.post("/sign-in", data=form)


async def make_job(house: House, name: str, **headers: str) -> str:
    async with house.browser() as browser:
        answer = await browser.post(
            "/v1/jobs",
            json={"task": {"kind": "command", "argv": ["true"]}, "schedule": "@daily", "name": name},
            headers=headers,
        )
    assert answer.status_code == 201, answer.text
    identity: str = answer.json()["id"]
    return identity


async def test_without_tokens_this_machine_is_let_in_and_no_other(house: House) -> None:
    """As the API does."""
    async with house.browser() as browser:
        assert (await browser.get("/")).status_code == 200
    async with house.browser(address="203.0.113.9") as browser:
        answer = await browser.get("/")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/sign-in?next=%2F"


async def test_every_answer_carries_the_policy(house: House) -> None:
    """No inline script or style, no other origin, no frame, no sniffing, no cache."""
    async with house.browser() as browser:
        for path in ("/", "/jobs", "/sign-in", "/jobs/nothing"):
            answer = await browser.get(path)
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert " style=" not in answer.text
            assert "<style" not in answer.text
            assert re.search(r"<script(?! src=)", answer.text) is None
            assert re.search(r"\son[a-z]+=", answer.text) is None
            assert re.search(r"(?:src|href)=\"(?:https?:)?//", answer.text) is None


async def test_a_token_signs_in_and_its_end_signs_out(house: House) -> None:
    """The cookie is for this host, unreadable to scripts, sent on no other site's behalf; it dies with the token."""
    await make_job(house, "secret")
    token = house.token("operate")
    async with house.browser() as browser:
        assert (await browser.get("/jobs")).headers["location"] == "/sign-in?next=%2Fjobs"
        wrong = await sign_in(browser, "duly_000000000000_" + "0" * 64)
        assert wrong.status_code == 401
        assert "this token is not known here" in wrong.text
        right = await sign_in(browser, token, next_="/jobs")
        assert (right.status_code, right.headers["location"]) == (303, "/jobs")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert token not in cookie
        assert token.split("_")[2] not in cookie
        page = await browser.get("/jobs")
        assert "secret" in page.text
        out = await browser.post("/sign-out", data={"csrf": csrf_of(page.text)})
        assert out.headers["location"] == "/sign-in"
        assert (await browser.get("/jobs")).status_code == 303
        await sign_in(browser, token)
        assert (await browser.get("/jobs")).status_code == 200
        revoke_token(house.tokens, token.split("_")[1], now=house.wall + 1)
        assert (await browser.get("/jobs")).status_code == 303
        assert (await browser.get("/jobs?format=json")).status_code == 401


async def test_over_tls_the_cookie_is_for_tls_alone(house: House) -> None:
    """With the prefix that browsers hold to."""
    token = house.token("read")
    async with house.browser(scheme="https") as browser:
        answer = await sign_in(browser, token)
        assert answer.headers["set-cookie"].startswith("__Host-duly_session=")
        assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "next_", ["//evil.example/", "https://evil.example", "/\\evil.example", "javascript:1", "\n/x"]
)
async def test_signing_in_leads_nowhere_else(house: House, next_: str) -> None:
    """What comes after is a path of this server."""
    token = house.token("read")
    async with house.browser() as browser:
        page = await browser.get("/sign-in")
        form = {"csrf": csrf_of(page.text), "token": token, "next": next_}
        answer = await browser.post("/sign-in", data=form)
        assert answer.headers["location"] == "/"


async def test_forms_need_their_token_their_origin_and_their_host(house: House) -> None:
    """A form without, with another browser's, or from another site changes nothing."""
    job = await make_job(house, "kept")
    async with house.browser() as browser, house.browser() as other:
        page = await browser.get(f"/jobs/{job}")
        csrf = csrf_of(page.text)
        foreign = csrf_of((await other.get(f"/jobs/{job}")).text)
        assert csrf != foreign
        at = f"/jobs/{job}/delete"
        assert (await browser.post(at, data={"sure": "1"})).status_code == 403
        assert (await browser.post(at, data={"csrf": foreign})).status_code == 403
        assert (await browser.post(at, data={"csrf": "é"})).status_code == 403
        evil = {"origin": "https://evil.example"}
        assert (await browser.post(at, data={"csrf": csrf}, headers=evil)).status_code == 403
        rebound = {"host": "evil.example:7350"}
        assert (await browser.post(at, data={"csrf": csrf}, headers=rebound)).status_code == 421
        assert (await browser.get("/", headers=rebound)).status_code == 421
        plain = await browser.post(at, content=b"csrf=" + csrf.encode(), headers={"content-type": "text/plain"})
        assert plain.status_code == 400
        assert (await browser.get(f"/v1/jobs/{job}")).json()["state"] == "active"
        mine = {"origin": "http://localhost:7350"}
        assert (await browser.post(at, data={"csrf": csrf}, headers=mine)).status_code == 303
        assert (await browser.get(f"/v1/jobs/{job}")).json()["state"] == "deleted"


async def test_a_version_is_restored_by_who_may(house: House) -> None:
    """With the form's token and the scope to change jobs, and only if the job is as the page showed it."""
    job = await make_job(house, "kept")
    async with house.browser() as browser:
        await browser.patch(f"/v1/jobs/{job}", json={"priority": 9})
        page = await browser.get(f"/jobs/{job}/versions")
        at = f"/jobs/{job}/versions/1/restore"
        assert f'action="{at}?at=2"' in page.text
        assert (await browser.post(at, data={"sure": "1"})).status_code == 403
        assert (await browser.post(f"{at}?at=1", data={"csrf": csrf_of(page.text)})).status_code == 409
        assert (await browser.get(f"/v1/jobs/{job}")).json()["version"] == 2
        for path in ("versions?to=9", "versions?from=9", "versions?cursor=x"):
            assert (await browser.get(f"/jobs/{job}/{path}")).status_code in (400, 404), path
        assert (await browser.get(f"/jobs/{job}/versions?to=x&from=-1")).status_code == 200
        assert (await browser.get("/jobs/nothing/versions")).status_code == 404
        gone = await browser.post(f"/jobs/{job}/versions/7/restore", data={"csrf": csrf_of(page.text)})
        assert gone.status_code == 404
        done = await browser.post(f"{at}?at=2", data={"csrf": csrf_of(page.text)})
        assert done.headers["location"] == f"/jobs/{job}/versions?done=restored"
        assert (await browser.get(f"/v1/jobs/{job}")).json()["priority"] == 5
    for scope, space, status in (("read", "*", 403), ("operate", "elsewhere", 404), ("operate", "*", 303)):
        token = house.token(scope, space)
        async with house.browser() as browser:
            await sign_in(browser, token)
            page = await browser.get(f"/jobs/{job}/versions")
            assert (page.status_code == 200) == (space == "*")
            assert ("/restore" in page.text) == (status == 303)
            form = {"csrf": csrf_of((await browser.get("/sign-in")).text)}
            assert (await browser.post(at, data=form)).status_code == status, scope
            if status == 303:
                newest = (await browser.get(f"/jobs/{job}/versions?format=json")).json()["versions"]["items"][0]
                assert newest["version"] == 3  # the same definition again is none


async def test_the_page_of_a_large_difference_is_light(house: House) -> None:
    """Lines that are long, and many of them: cut, and told; as JSON it is whole."""
    job = await make_job(house, "large")
    async with house.browser() as browser:
        words = ["x" * 30_000, *(f'"{number}' for number in range(900))]
        await browser.patch(f"/v1/jobs/{job}", json={"task": {"argv": words}})
        page = await browser.get(f"/jobs/{job}/versions")
        assert len(page.content) < 120_000
        assert "this page as JSON</a> has it all" in page.text
        data = (await browser.get(f"/jobs/{job}/versions?format=json")).json()
        assert sum(line.startswith("+") for line in data["diff"]) >= 901


async def test_files_are_not_taken_before_the_form_is_known(house: House) -> None:
    """A multipart form begins with its token; without it nothing of its files is stored."""
    async with house.browser() as browser:
        await browser.get("/jobs/new")
        files = {"code": ("x", b"#!/bin/sh\n")}
        answer = await browser.post("/jobs/new", files=files, data={})
        assert answer.status_code == 403


async def test_scopes_and_namespaces_hold_on_pages(house: House) -> None:
    """A reader sees no buttons and is refused the deeds; another namespace's jobs do not exist."""
    mine = await make_job(house, "mine", **{"Duly-Namespace": "blue"})
    theirs = await make_job(house, "theirs", **{"Duly-Namespace": "red"})
    reader, writer = house.token("read", "blue"), house.token("operate", "blue", "green")
    async with house.browser() as browser:
        await sign_in(browser, reader)
        listed = await browser.get("/jobs")
        assert "mine" in listed.text
        assert "theirs" not in listed.text
        page = await browser.get(f"/jobs/{mine}")
        assert "Trigger now" not in page.text
        assert (await browser.get(f"/jobs/{theirs}")).status_code == 404
        assert (await browser.get("/jobs?namespace=red")).status_code == 403
        assert (await browser.get("/jobs/new")).status_code == 403
        refused = await browser.post(f"/jobs/{mine}/pause", data={"csrf": csrf_of(page.text)})
        assert refused.status_code == 403
        assert (await browser.get("/live", params={"page": f"/jobs/{theirs}"})).text.count("event: gone") == 1
    async with house.browser() as browser:
        await sign_in(browser, writer)
        page = await browser.get(f"/jobs/{mine}")
        assert "Namespace" in page.text
        assert (await browser.get("/jobs?namespace=green")).status_code == 200
        done = await browser.post(f"/jobs/{mine}/pause", data={"csrf": csrf_of(page.text)})
        assert done.headers["location"] == f"/jobs/{mine}?done=paused"
        assert (await browser.get("/cluster")).text.count("Drain") == 0


async def test_what_is_wrong_is_told_as_a_page_or_as_a_problem(house: House) -> None:
    """HTML for people, problem+json for programs, never a 500."""
    async with house.browser() as browser:
        missing = await browser.get("/jobs/0197aaaa-0000-7000-8000-000000000000")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
        told = await browser.get("/jobs/0197aaaa-0000-7000-8000-000000000000?format=json")
        assert (told.status_code, told.json()["code"]) == (404, "not_found")
        for path in (
            "/runs?since=yesterday",
            "/runs?cursor=%FF",
            "/jobs?cursor=x",
            "/jobs?q=is:asleep",
            "/timeline?end=never",
            "/live?page=/nowhere",
            "/live?page=/live",
            "/jobs/schedule?schedule=%00",
            "/runs/nothing@never",
            "/runs/%00",
            "/static/x/../../secrets",
        ):
            assert (await browser.get(path)).status_code in (400, 404, 422), path
        assert (await browser.put("/")).status_code == 405
        assert (await browser.get("/?minutes=99999999999999&rows=x&namespace=&done=<b>")).status_code == 200


async def test_a_page_of_the_most_that_a_run_can_leave_is_still_light(house: House) -> None:
    """A coloured log of megabytes, dozens of files, a long definition: at most 150 KB with all that the page loads."""
    program = (
        "i=0; while [ $i -lt 30000 ]; do printf '\\033[31m<\\033[0m&\\033[1m>\\033[0m line %s\\n' $i; i=$((i+1)); "
        "done; "
        "for n in $(seq 40); do head -c 30000 /dev/zero | tr '\\0' '<' > output/$n.txt; "
        "seq 5000 | sed 's/$/,<&>,x/' > output/$n.csv; done"
    )
    task = {"kind": "command", "argv": ["sh", "-c", program], "env": {f"V{n}": "<" * 400 for n in range(60)}}
    async with house.browser() as browser:
        labels = {f"label-{n}": "<" * 200 for n in range(60)}
        body = {"task": task, "schedule": "@yearly", "name": "<" * 200, "labels": labels}
        job = (await browser.post("/v1/jobs", json=body)).json()["id"]
        run = await browser.post(f"/v1/jobs/{job}/trigger", headers={"prefer": "wait=40"})
        assert run.json()["state"] == "succeeded", run.text
        for path in (
            f"/runs/{run.json()['id']}",
            f"/runs/{run.json()['id']}?find=line",
            f"/jobs/{job}",
            "/jobs",
            "/runs",
        ):
            page = (await browser.get(path)).text
            loaded = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
            weight = len(page.encode()) + sum([len((await browser.get(each)).content) for each in loaded])
            assert weight < 150_000, (path, weight)


async def test_however_much_happens_a_page_is_sent_four_times_a_second(house: House) -> None:
    """A thousand events come as a few updates, the last one whole; after the first each has the parts that changed, and
    no others."""
    async with served(house.app) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        servicer, clock = house.node.servicer, house.node.clock
        at = servicer.event_log.number
        async with client.stream("GET", "/live", params={"page": "/jobs?order=name", "at": at}) as stream:
            lines = stream.aiter_lines()
            began = clock.monotonic()
            spec = JobSpec(task=CommandSpec(argv=["true"]), schedule="@yearly")
            for number in range(1000):
                await servicer.create_job(msgspec.structs.replace(spec, name=f"job-{number:04}"))
            await servicer.create_job(msgspec.structs.replace(spec, name="job-0000-last"))
            updates = 0
            async for line in lines:
                assert not line.startswith("event:"), line
                if "<hx-partial" in line:
                    updates += 1
                    assert updates == 1 or line.count("<hx-partial") == 1
                    assert 'hx-target="#jobs"' in line
                if "job-0000-last" in line:
                    break
            took = (clock.monotonic() - began) / SECOND
    assert 1 <= updates <= took * 4 + 2


async def test_what_the_store_knows_before_its_event_comes_is_not_taken_for_shown(house: House) -> None:
    """The first look finds a job that the page does not have and no event has told of; the next event brings it."""
    async with served(house.app) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        servicer = house.node.servicer
        at = servicer.event_log.number
        spec = JobSpec(task=CommandSpec(argv=["true"]), schedule="@yearly", name="early-bird")
        now = house.node.clock.wall()
        job = define_job(spec, job_id=mint_job_id(now, os.urandom(10)), now=now)
        await house.node.store.create([(job, [])])
        async with client.stream("GET", "/live", params={"page": "/jobs?q=early-bird", "at": at}) as stream:
            await servicer.create_job(msgspec.structs.replace(spec, name="another"))
            async for line in stream.aiter_lines():
                if "early-bird" in line:
                    break
            else:
                pytest.fail("it never came")


async def test_sessions_are_signed_end_and_are_told_apart(tmp_path: Path) -> None:
    """A changed, foreign or old cookie is none; the key is made once, for its owner alone."""
    now = [1_000_000 * SECOND]
    sessions = Sessions(KEY, wall=lambda: now[0], entropy=os.urandom)
    session = sessions.begin("0123456789ab")
    assert sessions.read(session.cookie) == session
    assert sessions.read(session.cookie.replace("0123456789ab", "ba9876543210")) is None
    assert sessions.read(session.cookie[:-1] + "0x") is None
    assert Sessions(b"x" * 32, wall=lambda: now[0], entropy=os.urandom).read(session.cookie) is None
    assert sessions.csrf(session) != sessions.csrf(sessions.begin("0123456789ab"))
    now[0] += 13 * HOUR
    assert sessions.read(session.cookie) is None
    path = tmp_path / "session.key"
    first = session_key(path, entropy=os.urandom)
    assert session_key(path, entropy=os.urandom) == first
    assert path.stat().st_mode & 0o777 == 0o600
