"""Files over HTTP: jobs with their files, blobs in and out, ranges, and what runs leave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from duly.core.instants import SECOND
from faces.api.harness import Api, command, exchange, served

SCRIPT = b"#!/bin/sh\nmkdir -p output/deep\ncat input/data/in.csv > output/deep/report.txt\n"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def form(*parts: tuple[str, bytes], boundary: str = "xyz", end: str = "--") -> tuple[bytes, dict[str, str]]:
    """A multipart body, part by part, and its header."""
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), data)
        for name, data in parts
    )
    return body + f"--{boundary}{end}\r\n".encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


JOB = json.dumps({"task": {"kind": "command"}, "schedule": "every 1h"}).encode()


# -- blobs --------------------------------------------------------------------------------------------------


async def test_a_blob_goes_in_and_comes_out(client: httpx2.AsyncClient) -> None:
    """Under its digest, as an attachment that no browser opens; twice is once."""
    data = bytes(range(256)) * 10_000
    for _ in range(2):
        put = await client.post("/v1/blobs", content=data)
        assert (put.status_code, put.json()) == (201, {"digest": digest_of(data), "size": len(data)})
        assert put.headers["location"] == f"/v1/blobs/{digest_of(data)}"
    got = await client.get(put.headers["location"])
    assert got.content == data
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"].startswith("attachment;")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]
    assert got.headers["etag"] == f'"{digest_of(data)}"'
    again = await client.get(put.headers["location"], headers={"if-none-match": got.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head(put.headers["location"])
    assert (head.headers["content-length"], head.content) == (str(len(data)), b"")


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=2-4", 206, 2, 5),
        ("bytes=5-", 206, 5, 10),
        ("bytes=-3", 206, 7, 10),
        ("bytes=-30", 206, 0, 10),
        ("bytes=8-99", 206, 8, 10),
        ("bytes=10-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=4-2", 200, 0, 10),
        ("bytes=0-1,4-5", 200, 0, 10),
        ("lines=1-2", 200, 0, 10),
        ("bytes=-", 200, 0, 10),
        ("nonsense", 200, 0, 10),
    ],
)
async def test_ranges(client: httpx2.AsyncClient, wanted: str, status: int, start: int, end: int) -> None:
    """One range is served; what is no range counts as none; one outside is refused with the size."""
    data = b"0123456789"
    path = (await client.post("/v1/blobs", content=data)).headers["location"]
    answer = await client.get(path, headers={"range": wanted})
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */10"
        return
    assert answer.content == data[start:end]
    assert answer.headers["content-length"] == str(end - start)
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10"


async def test_a_range_of_another_version_is_the_whole(client: httpx2.AsyncClient) -> None:
    """If-Range with another ETag."""
    path = (await client.post("/v1/blobs", content=b"0123456789")).headers["location"]
    other = await client.get(path, headers={"range": "bytes=0-1", "if-range": '"sha256:other"'})
    assert (other.status_code, other.content) == (200, b"0123456789")
    same = await client.get(path, headers={"range": "bytes=0-1", "if-range": other.headers["etag"]})
    assert (same.status_code, same.content) == (206, b"01")


async def test_an_upload_is_held_to_its_digest(client: httpx2.AsyncClient) -> None:
    """By parameter or header; a wrong one is refused and leaves nothing."""
    data = b"some bytes"
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"others").digest()).decode()
    for query, headers in [
        (f"?digest={digest_of(data)}", {}),
        ("", {"content-digest": f"sha-512=:AAAA:, sha-256=:{encoded}:"}),
        ("", {"digest": f"SHA-256={encoded}"}),
        ("", {"content-digest": "md5=:AAAA:"}),
    ]:
        assert (await client.post(f"/v1/blobs{query}", content=data, headers=headers)).status_code == 201
    for query, headers, status in [
        (f"?digest={digest_of(b'others')}", {}, 422),
        ("?digest=md5:00", {}, 422),
        ("", {"content-digest": f"sha-256=:{wrong}:"}, 422),
        ("", {"content-digest": "sha-256=:!!:"}, 400),
        ("", {"digest": "sha-256=AAAA"}, 400),
    ]:
        answer = await client.post(f"/v1/blobs{query}", content=b"altered", headers=headers)
        assert answer.status_code == status, (query, headers)
    assert (await client.get(f"/v1/blobs/{digest_of(b'altered')}")).status_code == 404


async def test_an_upload_past_the_limit_leaves_nothing(api: Api) -> None:
    """Told by its length or found out on the way."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    async with api.client(api.app(max_blob_bytes=10_000)) as client:
        assert (await client.post("/v1/blobs", content=b"x" * 20_000)).status_code == 413
        assert (await client.post("/v1/blobs", content=chunks())).status_code == 413
        assert (await client.post("/v1/blobs", content=b"x" * 10_000)).status_code == 201
        assert (await client.get(f"/v1/blobs/{digest_of(b'x' * 20_000)}")).status_code == 404


async def test_a_blob_that_rotted_is_broken_off(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """The last chunk is never sent, so that the client cannot take a part or a wrong whole for the right one."""
    data = bytes(range(256)) * 20_000
    digest = (await api.servicer.put_blob(data)).digest
    hexadecimal = digest.removeprefix("sha256:")
    (path,) = [each for each in api.tokens.parent.rglob(hexadecimal[2:]) if hexadecimal[:2] in each.parts]
    path.chmod(0o600)
    path.write_bytes(data[:-1] + b"?")
    async with served(api.app()) as url, httpx2.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"/v1/blobs/{digest}")
    assert "broke off: blob_corrupt" in caplog.text


# -- jobs with their files ----------------------------------------------------------------------------------


async def test_a_job_comes_with_its_files(client: httpx2.AsyncClient) -> None:
    """In any order of parts; the digests are filled in and the blobs are there."""
    body, headers = form(("input/data/in.csv", b"1,2\n"), ("job", JOB), ("code", SCRIPT))
    made = await client.post("/v1/jobs", content=body, headers=headers)
    assert made.status_code == 201, made.text
    task = made.json()["task"]
    assert (task["code"], task["inputs"]) == (digest_of(SCRIPT), {"data/in.csv": digest_of(b"1,2\n")})
    assert (await client.get(f"/v1/blobs/{task['code']}")).content == SCRIPT


async def test_a_form_may_be_repeated_with_a_key(client: httpx2.AsyncClient) -> None:
    """The files belong to the body: the same ones find the job, others are refused."""
    key = {"idempotency-key": "report"}
    statuses = []
    for script in (SCRIPT, SCRIPT, b"#!/bin/false\n"):
        body, headers = form(("job", JOB), ("code", script), boundary=f"b{len(statuses)}")
        statuses.append((await client.post("/v1/jobs", content=body, headers=headers | key)).status_code)
    assert statuses == [201, 200, 422]


async def test_a_form_may_come_byte_by_byte(client: httpx2.AsyncClient) -> None:
    """However it is cut into chunks."""
    body, headers = form(("job", JOB), ("code", b"\r\n--xy\r\n" + SCRIPT), ("input/a", b""), ("input/b", b"\r"))

    async def drip() -> AsyncIterator[bytes]:
        for number in range(len(body)):
            yield body[number : number + 1]

    made = await client.post("/v1/jobs", content=drip(), headers=headers)
    assert made.json()["task"]["inputs"] == {"a": digest_of(b""), "b": digest_of(b"\r")}
    assert made.json()["task"]["code"] == digest_of(b"\r\n--xy\r\n" + SCRIPT)


@pytest.mark.parametrize(
    ("parts", "status", "pointer"),
    [
        ([("code", SCRIPT)], 422, "/part/job"),
        ([("job", JOB), ("job", JOB)], 422, "/part/job"),
        ([("job", JOB), ("code", b"1"), ("code", b"2")], 422, "/part/code"),
        ([("job", JOB), ("input/../../etc/passwd", b"")], 422, "/part/input~1..~1..~1etc~1passwd"),
        ([("job", JOB), ("input//abs", b"")], 422, "/part/input~1~1abs"),
        ([("job", JOB), ("input/a", b"1"), ("input/a", b"2")], 422, "/part/input~1a"),
        ([("job", JOB), ("input/", b"1")], 422, "/part/input~1"),
        ([("job", JOB), ("extra", b"1")], 422, "/part/extra"),
        ([("job", b"{")], 400, None),
        ([("job", b'{"task": {"kind": "function", "name": "a:b"}, "schedule": "now"}')], 422, "/task/kind"),
        ([("job", JOB.replace(b'"command"', b'"command", "code": "sha256:' + b"0" * 64 + b'"')), ("code", b"1")],
         422, "/task/code"),
        ([("job", b" " * 300_000)], 413, None),
        ([], 422, "/part/job"),
    ],
)  # fmt: skip
async def test_forms_that_are_no_jobs(
    client: httpx2.AsyncClient, parts: list[tuple[str, bytes]], status: int, pointer: str | None
) -> None:
    """Each says which part is wrong."""
    body, headers = form(*parts)
    answer = await client.post("/v1/jobs", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if pointer is not None:
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"", "multipart/form-data; boundary=xyz"),
        (b"nonsense", "multipart/form-data; boundary=xyz"),
        (b"--xyz--", "multipart/form-data"),
        (b"--xyz--", "multipart/form-data; boundary="),
        (b"--xyz--", f"multipart/form-data; boundary={'x' * 300}"),
        (b"--xyz\r\n\r\nx\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\nX: " + b"y" * 100_000, "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\n" + b"X: y\r\n" * 1_000, "multipart/form-data; boundary=xyz"),
        (b'--xyz\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n', "multipart/form-data; boundary=xyz"),
        (form(("job", JOB), ("code", SCRIPT), end="")[0], "multipart/form-data; boundary=xyz"),
        (form(("job", JOB), ("code", SCRIPT))[0][:-40], "multipart/form-data; boundary=xyz"),
    ],
)
async def test_bodies_that_are_no_forms(client: httpx2.AsyncClient, body: bytes, media: str) -> None:
    """400, and no job."""
    answer = await client.post("/v1/jobs", content=body, headers={"content-type": media})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), answer.text
    assert (await client.get("/v1/jobs")).json()["items"] == []


# -- what runs leave ----------------------------------------------------------------------------------------


async def test_a_run_from_upload_to_download(live: Api) -> None:
    """A script and its input go up, the run is waited for, and its output and log come down."""
    job = {"task": {"kind": "command"}, "schedule": "every 100d"}
    script = SCRIPT + b'echo "hello <b>"\necho oops >&2\n'
    body, headers = form(("job", json.dumps(job).encode()), ("code", script), ("input/data/in.csv", b"1,2\n"))
    async with live.client() as client:
        made = await client.post("/v1/jobs", content=body, headers=headers)
        run = await client.post(f"{made.headers['location']}/trigger", headers={"prefer": "wait=5"})
        assert (run.status_code, run.json()["state"]) == (200, "succeeded"), run.text
        assert run.headers["preference-applied"] == "wait=5"
        path = f"/v1/runs/{run.json()['id']}"
        manifest = (await client.get(f"{path}/output")).json()
        report = {"path": "deep/report.txt", "size": 4, "digest": digest_of(b"1,2\n")}
        assert manifest == {"items": [report], "next": None, "partial": False, "missing_shards": []}
        output = await client.get(f"{path}/output/deep/report.txt")
        assert output.content == b"1,2\n"
        assert output.headers["content-disposition"].startswith('attachment; filename="report.txt"')
        assert output.headers["content-type"] == "application/octet-stream"
        assert (await client.get(f"{path}/output/deep/report.txt", headers={"range": "bytes=2-"})).content == b"2\n"
        tag = {"if-none-match": output.headers["etag"]}
        assert (await client.get(f"{path}/output/deep/report.txt", headers=tag)).status_code == 304
        for missing in ("deep", "deep/none.txt", "../deep/report.txt", "%2e%2e/x", "deep%2freport.txt%00"):
            assert (await client.get(f"{path}/output/{missing}")).status_code == 404, missing
        log = await client.get(f"{path}/log?stream=stdout")
        assert (log.text, log.headers["content-type"]) == ("hello <b>\n", "text/plain; charset=utf-8")
        assert log.headers["x-content-type-options"] == "nosniff"
        assert (await client.get(f"{path}/log?stream=stderr&attempt=1")).text == "oops\n"
        assert "hello" in (await client.get(f"{path}/log")).text
        assert (await client.get(f"{path}/log?stream=nonsense")).status_code == 422
        explained = (await client.get(f"{path}/explain")).json()
        assert explained["state"] == "succeeded"
        again = await client.post(f"{path}/retry")
        assert (again.status_code, again.json()["retry_of"]) == (202, run.json()["id"])
        waited = await client.get(again.headers["location"], headers={"prefer": "wait=5"})
        assert (waited.status_code, waited.json()["state"]) == (200, "succeeded")


async def test_a_large_upload_streams_through_a_real_server(api: Api) -> None:
    """With Expect: 100-continue the body is asked for only when it will be taken."""
    async with served(api.app(max_blob_bytes=1_000_000)) as url:
        request = "POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n"
        head, body = await exchange(url, request.format(2_000_000).encode())
        assert head.startswith(b"HTTP/1.1 413 ")
        assert json.loads(body)["status"] == 413
        async with httpx2.AsyncClient(base_url=url) as client:
            data = b"z" * 1_000_000
            assert (await client.post("/v1/blobs", content=data)).json()["size"] == 1_000_000
            assert (await client.get(f"/v1/blobs/{digest_of(data)}")).content == data


async def test_waiting_ends_when_the_server_stops(api: Api) -> None:
    """A request that waits for a run is answered with the run as it is."""
    app = api.app(longest_wait=60 * SECOND)
    async with httpx2.AsyncClient() as client:
        started = api.clock.monotonic()
        async with served(app, stop=api.stop) as url:
            made = await client.post(f"{url}/v1/jobs", json=command("/bin/true", schedule="every 1h"))
            run = await client.post(f"{url}{made.headers['location']}/trigger")
            waiting = client.build_request("GET", f"{url}{run.headers['location']}", headers={"prefer": "wait=60"})
            answer = await _with_stop(client, waiting, api)
        assert (answer.status_code, answer.json()["state"]) == (200, "waiting")
        assert api.clock.monotonic() - started < 10 * SECOND


async def _with_stop(client: httpx2.AsyncClient, request: httpx2.Request, api: Api) -> httpx2.Response:
    """Send, and stop the server once the request waits there."""
    sending = asyncio.create_task(client.send(request))
    while not api.servicer.event_log._waiters:
        await api.clock.sleep(1000)
    api.stop.set()
    return await sending
