"""Requests that mean no good, or make no sense: each gets a problem that names itself, never a 500."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest

from duly.core.instants import MILLISECOND
from faces.api.harness import Api, command, exchange, served

JSON = {"content-type": "application/json"}
VALID = json.dumps(command("/bin/true"))


def is_problem(answer: httpx2.Response) -> None:
    """RFC 9457, with our code and the request's id."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff\xfe{}", 400, None),
        (b'{"schedule": "\xff"}', 400, None),
        (b'{"schedule": "\\ud800"}', 400, None),
        (b"[" * 100_000, 422, ""),
        (b'{"task":' * 10_000, 400, None),
        (b"NaN", 400, None),
        (b'{"priority": NaN}', 400, None),
        (b'{"priority": Infinity}', 400, None),
        (b"null", 422, ""),
        (b"[]", 422, ""),
        (b"{}", 422, "/task"),
        (VALID.replace("now", "now\\u0000").encode(), 422, "/schedule"),
        (VALID.replace("}", "}, 'x': 1}", 1).encode(), 400, None),
        (VALID[:-1].encode() + b', "priority": 1e999}', 422, "/priority"),
        (VALID[:-1].encode() + b', "priority": 123456789012345678901234567890}', 422, "/priority"),
        (VALID[:-1].encode() + b', "priority": 1.5}', 422, "/priority"),
        (VALID[:-1].encode() + b', "max_runs": -1}', 422, "/max_runs"),
        (VALID[:-1].encode() + b', "timezone": "Mars/Olympus"}', 422, "/timezone"),
        (VALID[:-1].encode() + b', "timezone": "../../etc/passwd"}', 422, "/timezone"),
        (VALID[:-1].encode() + b', "timeout": "99999999999999999999d"}', 422, "/timeout"),
        (VALID[:-1].encode() + b', "start": "9999-99-99T00:00:00Z"}', 422, "/start"),
        (VALID[:-1].encode() + b', "labels": {"": "x"}}', 422, "/labels/"),
        (VALID[:-1].encode() + b', "priority": 3, "priority": "three"}', 422, "/priority"),
    ],
)
async def test_bodies_that_are_no_jobs(
    client: httpx2.AsyncClient, body: bytes, status: int, pointer: str | None
) -> None:
    """400 for what is no JSON, 422 with a pointer for what is no job."""
    answer = await client.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    is_problem(answer)
    if pointer is not None and pointer != "/labels/":
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_of_a_repeated_key_the_last_counts(client: httpx2.AsyncClient) -> None:
    """As most parsers have it."""
    answer = await client.post("/v1/jobs", content=VALID[:-1] + ', "priority": 3, "priority": 4}', headers=JSON)
    assert answer.json()["priority"] == 4


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/batch", "/v1/jobs/bulk", "/v1/schedules/preview"])
async def test_json_comes_as_json(client: httpx2.AsyncClient, path: str) -> None:
    """What a page can send without asking (text/plain, a form, nothing) is 415."""
    for media in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp", "text/html"):
        answer = await client.post(path, content=VALID, headers={"content-type": media})
        assert answer.status_code == 415, media
        is_problem(answer)
    assert (await client.post(path, content="{", headers={"content-type": "Application/JSON; charset=utf-8"})).is_error


def sent_before_reading(url: str, request: bytes, size: int) -> tuple[bytes, bytes]:
    """Head and body of what a client gets that writes all of its request before it looks for an answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        for _ in range(size >> 16):
            connection.sendall(b" " * 65_536)
        got = b""
        while b"\r\n\r\n" not in got or not got.endswith(b"}"):
            piece = connection.recv(65_536)
            assert piece, got
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        return head, body


async def test_large_bodies_are_refused_before_they_are_read(api: Api) -> None:
    """By their length if it is told, else as soon as the limit is passed; memory stays flat."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1600):
            sent += 65_536
            yield b" " * 65_536

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with served(api.app(max_blob_bytes=1 << 20)) as url, httpx2.AsyncClient(base_url=url) as client:
        for path, limit in [("/v1/jobs", 262_144), ("/v1/jobs/batch", 32 << 20), ("/v1/blobs", 1 << 20)]:
            request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head, body = await exchange(url, f"{request}Content-Length: {limit + 1}\r\n\r\n".encode())
            assert head.startswith(b"HTTP/1.1 413 ")
            assert b"\r\nconnection: close\r\n" in head
            assert json.loads(body)["code"] == "too_large"
        sent = 0
        chunked = await client.post("/v1/jobs", content=endless(), headers=JSON)
        assert (chunked.status_code, chunked.headers["connection"]) == (413, "close")
        for lengths in (f"Content-Length: {64 << 20}\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4000000\r\n"):
            request = f"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\n{lengths}".encode()
            head, body = await asyncio.to_thread(sent_before_reading, url, request, 64 << 20)
            assert head.startswith(b"HTTP/1.1 413 "), "the refusal is not lost to a reset"
            assert json.loads(body)["code"] == "too_large"
        assert (await client.get("/healthz")).status_code == 200
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB more"


async def test_a_body_that_does_not_come_is_given_up(api: Api) -> None:
    """A slow sender is answered 408 and disconnected, while others are served."""
    async with served(api.app(patience=50 * MILLISECOND)) as url:
        request = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head, body = await exchange(url, request + b"Content-Length: 100\r\n\r\n{")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["code"] == "request_timed_out"


async def test_unknown_paths_and_methods_are_problems(client: httpx2.AsyncClient) -> None:
    """404 and 405 look as every other error does; HEAD and OPTIONS behave."""
    missing = await client.get("/v2/jobs")
    assert missing.status_code == 404
    is_problem(missing)
    wrong = await client.put("/v1/jobs", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    is_problem(wrong)
    assert (await client.options("/v1/jobs")).status_code == 405
    head = await client.head("/v1/jobs")
    assert (head.status_code, head.content) == (200, b"")
    assert (await client.head("/v1/events")).headers["content-type"] == "text/event-stream"
    assert (await client.head("/v1/jobs/x")).status_code == 404


async def test_foreign_hosts_are_misdirected(client: httpx2.AsyncClient) -> None:
    """A page whose name was made to resolve to 127.0.0.1 is told so, on every route."""
    for path in ("/v1/jobs", "/healthz", "/docs", "/nothing"):
        answer = await client.get(path, headers={"host": "rebound.example:7350"})
        assert answer.status_code == 421
        is_problem(answer)
    assert (await client.get("/healthz", headers={"host": "127.0.0.1"})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:8080"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_pages_elsewhere_cannot_change_anything(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """Neither create nor pause; reading gets no CORS header, so that the page cannot see the answer."""
    made = (await client.post("/v1/jobs", json=command("/bin/true", schedule="every 1h"))).json()
    for method, path in [
        ("POST", "/v1/jobs"),
        ("POST", f"/v1/jobs/{made['id']}/pause"),
        ("DELETE", f"/v1/jobs/{made['id']}"),
        ("POST", "/v1/blobs"),
    ]:
        answer = await client.request(method, path, content=VALID, headers=JSON | headers)
        assert answer.status_code == 403, path
        is_problem(answer)
    read = await client.get(f"/v1/jobs/{made['id']}", headers=headers)
    assert read.json()["state"] == "active"
    assert not [name for name in read.headers if name.startswith("access-control")]
    own = {"origin": "http://localhost:7350", "sec-fetch-site": "same-origin"}
    assert (await client.post(f"/v1/jobs/{made['id']}/pause", headers=own)).status_code == 200


async def test_request_ids_are_kept_if_sane(client: httpx2.AsyncClient) -> None:
    """Others are replaced, so that they cannot forge log lines."""
    kept = await client.get("/healthz", headers={"x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    for bad in ("two words", "x" * 129, "a\tb", "{}"):
        answer = await client.get("/healthz", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] != bad


async def test_what_goes_wrong_inside_is_a_problem_with_its_id_in_the_log(
    api: Api, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns the id and nothing of the cause."""

    async def broken() -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.servicer, "stats", broken)
    with caplog.at_level(logging.ERROR, "duly.http"):
        answer = await client.get("/v1/stats")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    is_problem(answer)
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)", "\r\nX-Evil: 1", "\x1b[31m"],
)
async def test_markup_stays_text(client: httpx2.AsyncClient, name: str) -> None:
    """Every answer is typed, not to be sniffed, and carries the name as JSON."""
    made = await client.post("/v1/jobs", json=command("/bin/true", name=name, schedule="every 1h"))
    if made.status_code == 201:
        assert made.json()["name"] == name
        assert made.headers["content-type"] == "application/json"
    assert made.headers["x-content-type-options"] == "nosniff"
    assert "x-evil" not in made.headers
    listed = await client.get("/v1/jobs", params={"name": name})
    assert "x-evil" not in listed.headers


async def test_the_store_is_not_asked_for_what_is_refused(api: Api) -> None:
    """A task's environment with a NUL never reaches it."""
    async with api.client() as client:
        bad = {"task": {"kind": "command", "argv": ["a\0b"]}, "schedule": "now"}
        answer = await client.post("/v1/jobs", json=bad)
        assert answer.json()["errors"][0]["pointer"] == "/task/argv/0"
    assert (await api.servicer.stats()).jobs == 0


@pytest.mark.parametrize("depth", [50, 200, 500, 900, 2_000, 100_000])
async def test_nesting_is_taken_or_refused(client: httpx2.AsyncClient, depth: int) -> None:
    """Wherever anything may stand: in arguments, in a request's body, in a patch, in a batch."""
    deep = "[" * depth + "]" * depth
    nested = '{"a":' * depth + "1" + "}" * depth
    path = (await client.post("/v1/jobs", json=command("/bin/true", schedule="every 1h"))).headers["location"]
    function = '{"task": {"kind": "function", "name": "a:b", "args": %s, "kwargs": {"x": %s}}, "schedule": "every 1h"}'
    http = '{"task": {"kind": "http", "url": "http://a", "body": %s}, "schedule": "every 1h"}'
    for method, where, body in [
        ("POST", "/v1/jobs", function % (deep, nested)),
        ("POST", "/v1/jobs", http % nested),
        ("PATCH", path, '{"labels": ' + nested + "}"),
        ("PATCH", path, nested),
        ("POST", "/v1/jobs/batch", '{"jobs": [%s]}' % (function % (deep, nested))),
        ("POST", "/v1/jobs/bulk", '{"action": "pause", "filter": {"label": ' + deep + "}}"),
    ]:
        answer = await client.request(method, where, content=body, headers=JSON)
        assert answer.status_code in (200, 201, 400, 413, 422), (where, answer.text)
        if answer.status_code == 201:
            read = await client.get(answer.headers["location"])
            assert read.json()["task"] == answer.json()["task"]


@pytest.mark.parametrize(
    "number", ["9007199254740993", "18446744073709551616", "1" * 400, "-" + "9" * 30, "1e308", "0.1"]
)
async def test_numbers_are_kept_or_refused(client: httpx2.AsyncClient, number: str) -> None:
    """What a job is given as an argument comes back as it was, or was never taken."""
    for body in (
        '{"task": {"kind": "function", "name": "a:b", "args": [%s]}, "schedule": "every 1h"}',
        '{"task": {"kind": "http", "url": "http://a", "body": {"n": %s}}, "schedule": "every 1h"}',
    ):
        answer = await client.post("/v1/jobs", content=body % number, headers=JSON)
        assert answer.status_code in (201, 400, 422), answer.text
        if answer.status_code == 201:
            task = (await client.get(answer.headers["location"])).json()["task"]
            assert json.loads(number) in (*task.get("args", []), (task.get("body") or {}).get("n"))
