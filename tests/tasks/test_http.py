"""HTTP tasks through a worker, against a server of this test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from duly.core.model import HttpTask
from duly.tasks.http import HttpRunner, NotSendable, expected
from workers.bench import SECOND, Bench, get, working


class Server:
    """Answers with what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.headers = "Content-Type: text/plain\r\nX-Secret: canary\r\n"
        self.body = b"hello"
        self.requests: list[bytes] = []
        self.silent = False
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            self.requests.append(head + await reader.readexactly(int(fields.get(b"content-length", b"0"))))
            if self.silent:
                await reader.read()
                return
            answer = f"HTTP/1.1 {self.status}\r\n{self.headers}Content-Length: {len(self.body)}\r\n\r\n"
            writer.write(answer.encode() + self.body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with working(tmp_path, functions_in="threads", allow_private_addresses=True) as found:
        yield found


async def test_a_request_carries_the_runs_id_and_its_answer_is_kept(bench: Bench, server: Server) -> None:
    run = await bench.give(get(f"http://127.0.0.1:{server.port}/path?q=1", headers={"X-Mine": "yes"}))
    event = await bench.succeeded(run)
    (request,) = server.requests
    assert request.startswith(b"GET /path?q=1 HTTP/1.1\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in request.split(b"\r\n")[1:] if b": " in line)
    assert fields[b"idempotency-key"] == run.id.lower().encode()
    assert fields[b"user-agent"].startswith(b"duly/")
    assert fields[b"x-mine"] == b"yes"
    assert fields[b"host"] == f"127.0.0.1:{server.port}".encode()
    told = msgspec.json.decode(event.result)
    assert told["status"] == 200
    assert told["headers"]["content-type"] == "text/plain"
    assert "x-secret" not in told["headers"]
    assert not told["truncated"]
    (output,) = event.outputs
    assert output.path == "response"
    assert await bench.text(output.digest) == b"hello"


@pytest.mark.parametrize(
    ("body", "sent", "kind"),
    [(b'{"a": 1}', b'{"a": 1}', b"application/json"), (b'"text"', b"text", b"text/plain"), (b"null", b"", None)],
)
async def test_a_body_is_json_or_text(
    bench: Bench, server: Server, body: bytes, sent: bytes, kind: bytes | None
) -> None:
    await bench.succeeded(await bench.give(HttpTask(url=f"http://127.0.0.1:{server.port}/", body=msgspec.Raw(body))))
    (request,) = server.requests
    head, _, content = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST / ")
    assert content == sent
    assert (kind is None) == (b"content-type" not in head.lower())
    assert kind is None or kind in head


@pytest.mark.parametrize(
    ("status", "expect", "retryable"),
    [("500 Oops", "2xx", True), ("429 Slow", "2xx", True), ("404 No", "2xx", False), ("200 OK", "201,3xx", False)],
)
async def test_an_unexpected_answer_fails_with_its_status_and_body(
    bench: Bench, server: Server, status: str, expect: str, retryable: bool
) -> None:
    server.status, server.body = status, b"the reason"
    event = await bench.failed(await bench.give(get(f"http://127.0.0.1:{server.port}/", expect=expect)))
    assert event.error.kind == "http"
    assert event.error.message == f"answered {status}, expected {expect}"
    assert event.error.detail == "the reason"
    assert event.retryable is retryable
    assert [output.path for output in event.outputs] == ["response"]


async def test_a_redirect_is_an_answer_and_is_not_followed(bench: Bench, server: Server) -> None:
    server.status, server.headers = "302 Found", "Location: http://169.254.169.254/\r\n"
    event = await bench.failed(await bench.give(get(f"http://127.0.0.1:{server.port}/")))
    assert event.error.message.startswith("answered 302")
    event2 = await bench.succeeded(await bench.give(get(f"http://127.0.0.1:{server.port}/", expect="3xx")))
    assert msgspec.json.decode(event2.result)["headers"]["location"] == "http://169.254.169.254/"
    assert len(server.requests) == 2


async def test_a_large_answer_is_kept_up_to_a_mebibyte(bench: Bench, server: Server) -> None:
    server.body = b"x" * (3 << 20)
    event = await bench.succeeded(await bench.give(get(f"http://127.0.0.1:{server.port}/")))
    assert msgspec.json.decode(event.result)["truncated"]
    assert event.outputs[0].size == 1 << 20


async def test_no_connection_is_a_failure_that_may_be_tried_again(bench: Bench) -> None:
    event = await bench.failed(await bench.give(get("http://127.0.0.1:1/")))
    assert event.error.kind == "http"
    assert event.retryable


async def test_a_server_that_does_not_answer_is_a_timeout(bench: Bench, server: Server) -> None:
    server.silent = True
    event = await bench.failed(await bench.give(get(f"http://127.0.0.1:{server.port}/"), timeout=100_000))
    assert event.error.kind == "timeout"


async def test_a_request_can_be_cancelled_before_and_after_its_instant(bench: Bench, server: Server) -> None:
    server.silent = True
    staged = await bench.give(get(f"http://127.0.0.1:{server.port}/"), due=30 * SECOND)
    await bench.cancel(staged)
    assert (await bench.stopped(staged)).started_at is None
    running = await bench.give(get(f"http://127.0.0.1:{server.port}/"))
    await bench.until(lambda: server.requests)
    await bench.cancel(running)
    assert (await bench.stopped(running)).started_at is not None


async def test_no_request_is_sent_before_its_instant(bench: Bench, server: Server) -> None:
    runs = [await bench.give(get(f"http://127.0.0.1:{server.port}/"), due=100_000 + 20_000 * i) for i in range(10)]
    for run in runs:
        event = await bench.succeeded(run)
        assert 0 <= event.started_at - run.due_at < SECOND


@pytest.mark.parametrize(
    "task",
    [
        get("http://127.0.0.1/", headers={"X-A": "1\r\nX-B: 2"}),
        get("http://127.0.0.1/", headers={"X-A\r\nX-B": "1"}),
        get("http://127.0.0.1/", expect="everything"),
        get("gopher://127.0.0.1/"),
        get("file:///etc/passwd"),
        get("http://[::1/"),
        get("/relative"),
    ],
)
async def test_what_cannot_be_sent_is_refused_and_not_tried_again(bench: Bench, task: HttpTask) -> None:
    event = await bench.failed(await bench.give(task))
    assert event.error.kind == "input"
    assert not event.retryable


PRIVATE = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0x7f.1:{port}/",
    "http://017700000001:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
]


async def test_the_workers_own_network_is_out_of_reach_by_default(tmp_path: Path, server: Server) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        runs = [await bench.give(get(url.format(port=server.port))) for url in PRIVATE]
        for url, run in zip(PRIVATE, runs, strict=True):
            event = await bench.failed(run)
            assert event.error.kind == "input", (url, event.error)
            assert "not on the public internet" in event.error.message, (url, event.error)
            assert not event.retryable
    assert server.requests == []


async def test_a_name_is_resolved_once_and_every_address_of_it_is_checked(tmp_path: Path, server: Server) -> None:
    asked: list[str] = []
    answers = {
        "mixed.example": ["93.184.216.34", "127.0.0.1"],
        "rebinding.example": ["127.0.0.1"],
        "none.example": [],
    }

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[host]

    async with working(tmp_path, functions_in="threads") as bench:
        runner = bench.worker._runners["http"]
        assert isinstance(runner, HttpRunner)
        runner._resolve = resolve
        for host in ("mixed.example", "rebinding.example"):
            event = await bench.failed(await bench.give(get(f"http://{host}:{server.port}/")))
            assert event.error.kind == "input"
            assert f"{host} is 127.0.0.1" in event.error.message
        event = await bench.failed(await bench.give(get("http://none.example/")))
        assert event.error.kind == "http"
        assert asked == ["mixed.example", "rebinding.example", "none.example"]
    assert server.requests == []


async def test_the_connection_goes_to_the_checked_address_under_the_name(tmp_path: Path, server: Server) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with working(tmp_path, functions_in="threads", allow_private_addresses=True) as bench:
        runner = bench.worker._runners["http"]
        assert isinstance(runner, HttpRunner)
        runner._resolve = resolve
        await bench.succeeded(await bench.give(get(f"http://a.name.example:{server.port}/")))
    assert f"host: a.name.example:{server.port}".encode() in server.requests[0].lower()


def test_expected_statuses() -> None:
    assert expected(204, "2xx")
    assert expected(301, "200, 204, 3XX")
    assert not expected(404, "2xx,3xx")
    for wrong in ("", "2x", "xxx", "600", "200,", "2xx;3xx"):
        with pytest.raises(NotSendable):
            expected(200, wrong)
