"""Event streams over a real server: what happens as it happens, logs while they are written, and their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2
import msgspec
import pytest

from duly.core.contract import EventView
from duly.core.instants import MILLISECOND, SECOND
from duly.core.model import JobId
from duly.faces.http.runs import frame
from faces.api.harness import Api, command, served

HOURLY = command("/bin/true", schedule="every 1h")


async def events(response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]:
    async for event in httpx2.EventSource(response):
        yield event


async def test_events_arrive_as_they_happen_and_go_on_after_the_last_one_seen(api: Api) -> None:
    """Each with an id, a type and an EventView; a client that comes back misses none and sees none twice."""
    async with served(api.app(), stop=api.stop) as url, httpx2.AsyncClient(base_url=url) as client:
        made: list[str] = []
        async with asyncio.timeout(10), client.stream("GET", "/v1/events") as response:
            assert response.headers["content-type"] == "text/event-stream"
            stream = events(response)
            for _ in range(2):
                made.append((await client.post("/v1/jobs", json=HOURLY)).json()["id"])
                event = await anext(stream)
                view = msgspec.json.decode(event.data, type=EventView)
                assert (event.event, event.id) == (view.type, view.id)
                assert (view.type, view.job_id) == ("job.created", made[-1])
            last = event.id
        made += [(await client.post("/v1/jobs", json=HOURLY)).json()["id"] for _ in range(3)]
        for how in ({"headers": {"last-event-id": last}}, {"params": {"after": last}}):
            async with asyncio.timeout(10), client.stream("GET", "/v1/events", **how) as response:
                stream = events(response)
                seen = [msgspec.json.decode((await anext(stream)).data, type=EventView).job_id for _ in range(3)]
            assert seen == made[2:]


async def test_events_stay_in_their_namespace(api: Api) -> None:
    """A stream of one namespace has nothing of another."""
    async with (
        served(api.app(), stop=api.stop) as url,
        httpx2.AsyncClient(base_url=url) as client,
        asyncio.timeout(10),
        client.stream("GET", "/v1/events?namespace=blue") as response,
    ):
        stream = events(response)
        await client.post("/v1/jobs?namespace=green", json=HOURLY)
        wanted = (await client.post("/v1/jobs?namespace=blue", json=HOURLY)).json()["id"]
        assert msgspec.json.decode((await anext(stream)).data, type=EventView).job_id == wanted


@pytest.mark.parametrize("last", ["nonsense", "a-b", "-1", "x-99999999999999999999", "'; drop table job; --"])
async def test_an_id_that_is_none_is_refused(client: httpx2.AsyncClient, last: str) -> None:
    """Before the stream begins."""
    assert (await client.get("/v1/events", headers={"last-event-id": last})).status_code == 400


async def test_silence_is_broken_by_comments(api: Api) -> None:
    """So that proxies keep the stream open and a dead client is found out."""
    app = api.app(heartbeat=10 * MILLISECOND)
    async with (
        served(app, stop=api.stop) as url,
        httpx2.AsyncClient(base_url=url) as client,
        asyncio.timeout(10),
        client.stream("GET", "/v1/events") as response,
    ):
        text = ""
        async for piece in response.aiter_text():
            text += piece
            if text.count(": still here\n\n") == 3:
                break
        assert text.startswith(": connected\n\n")


async def test_a_client_that_leaves_leaves_nothing_behind(api: Api) -> None:
    """Its tasks end, without anything being sent to it."""
    app = api.app(heartbeat=60 * SECOND)
    async with served(app, stop=api.stop) as url, httpx2.AsyncClient(base_url=url) as client:
        await client.get("/healthz")
        before = len(asyncio.all_tasks())
        async with asyncio.timeout(10):
            for _ in range(5):
                async with client.stream("GET", "/v1/events") as response:
                    await anext(response.aiter_raw())
            while len(asyncio.all_tasks()) > before:
                await api.clock.sleep(MILLISECOND)


async def test_streams_end_when_the_server_stops(api: Api) -> None:
    """At once: nobody waits for a stream that has no end of its own."""
    app = api.app(heartbeat=60 * SECOND)
    async with httpx2.AsyncClient() as client, asyncio.timeout(10):
        readers = []
        async with served(app, stop=api.stop) as url:
            for _ in range(3):
                request = client.build_request("GET", f"{url}/v1/events")
                readers.append(await client.send(request, stream=True))
            started = api.clock.monotonic()
        assert api.clock.monotonic() - started < 5 * SECOND
        for response in readers:
            assert (await response.aread()).decode() == ": connected\n\n"
            await response.aclose()


async def test_a_client_that_does_not_read_holds_up_nobody(api: Api) -> None:
    """Its stream waits for it; what it misses is bounded by the log of events, and shutdown is not held up."""
    async with served(api.app(), stop=api.stop, grace=2) as url, httpx2.AsyncClient(base_url=url) as client:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b": connected")
        batch = {"jobs": [HOURLY | {"name": "n" * 200}] * 4000}
        async with asyncio.timeout(20):
            for _ in range(3):
                assert (await client.post("/v1/jobs/batch", json=batch)).json()["created"] == 4000
            async with client.stream("GET", "/v1/events") as response:
                stream = events(response)
                wanted = (await client.post("/v1/jobs", json=HOURLY)).json()["id"]
                assert msgspec.json.decode((await anext(stream)).data, type=EventView).job_id == wanted
    writer.close()


async def test_a_log_is_followed_while_it_is_written(live: Api) -> None:
    """Text of both streams as it comes, then `end` with the run's state."""
    sign = live.tokens.parent / "go"
    wait = f"while [ ! -e {sign} ]; do sleep 0.01; done"
    script = f"echo one; echo oops >&2; {wait}; printf 'gr\\303'; printf '\\274n\\n'"
    task = {"kind": "command", "argv": ["/bin/sh", "-c", script]}
    async with served(live.app(), stop=live.stop) as url, httpx2.AsyncClient(base_url=url) as client:
        made = await client.post("/v1/jobs", json={"task": task, "schedule": "every 100d"})
        run = (await client.post(f"{made.headers['location']}/trigger")).json()["id"]
        text = {"stdout": "", "stderr": ""}
        async with asyncio.timeout(20), client.stream("GET", f"/v1/runs/{run}/log?follow=true") as response:
            assert response.headers["content-type"] == "text/event-stream"
            async for event in events(response):
                if event.event == "end":
                    break
                assert event.event in text, event
                text[event.event] += event.data
                if text["stdout"] and text["stderr"]:
                    sign.touch()
        assert text == {"stdout": "one\ngrün\n", "stderr": "oops\n"}
        assert msgspec.json.decode(event.data) == {"run_id": run, "state": "succeeded", "attempt": 1}
        async with (
            asyncio.timeout(10),
            client.stream("GET", f"/v1/runs/{run}/log?follow=true&stream=stderr") as response,
        ):
            again = [(event.event, event.data) async for event in events(response)]
        assert [kind for kind, _ in again] == ["stderr", "end"]


def test_a_frame_survives_every_line_end() -> None:
    """No data can end an event early or forge another one."""
    assert frame("stdout", "a\nb\r\nc\rd", "7-1") == b"id: 7-1\nevent: stdout\ndata: a\ndata: b\ndata: c\ndata: d\n\n"
    assert frame("stdout", "\n\nevent: end\ndata: x") == (
        b"event: stdout\ndata: \ndata: \ndata: event: end\ndata: data: x\n\n"
    )


async def test_streams_are_bounded(api: Api) -> None:
    """One more than there may be is refused with a code and a time to come again, before it begins."""
    app = api.app(max_streams=2)
    async with (
        served(app, stop=api.stop) as url,
        httpx2.AsyncClient(base_url=url) as client,
        asyncio.timeout(20),
        client.stream("GET", "/v1/events") as one,
    ):
        assert one.status_code == 200
        async with client.stream("GET", "/v1/events") as two:
            assert two.status_code == 200
            refused = await client.get("/v1/events")
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
        while (await client.head("/v1/events")).status_code != 200 or api.servicer.event_log.followers > 1:
            await api.clock.sleep(MILLISECOND)
        async with client.stream("GET", "/v1/events") as again:
            assert again.status_code == 200


async def flood(api: Api, until: Callable[[], bool]) -> None:
    """Events, a thousand at a time, while there is one who follows."""
    async with api.client() as client:
        made = (await client.post("/v1/jobs", json=HOURLY | {"name": "n" * 200})).json()["id"]
    row = (await api.store.get([JobId(made)]))[0]
    assert row is not None
    async with asyncio.timeout(30):
        while not until():
            api.servicer.event_log.heard_jobs("job.updated", [row.job] * 1_000, 0)
            await api.clock.sleep(MILLISECOND)


@asynccontextmanager
async def not_reading(url: str) -> AsyncIterator[socket.socket]:
    """A client that asks for events and reads none of them."""
    address = urlsplit(url)
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(link, (address.hostname, address.port))
        await loop.sock_sendall(link, f"GET /v1/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        text = b""
        while b": connected" not in text:
            text += await loop.sock_recv(link, 100)
        yield link


async def test_a_slow_reader_is_told_of_a_gap(api: Api) -> None:
    """It is sent what it reads; what was too much in between is a number. Nothing is kept for it."""
    async with served(api.app(heartbeat=60 * SECOND), stop=api.stop) as url, not_reading(url) as link:
        number = api.servicer.event_log.number
        await flood(api, lambda: api.servicer.event_log.number > number + 100_000)
        text = b""
        async with asyncio.timeout(20):
            while b"event: stream.skipped" not in text:
                text = text[-50:] + await asyncio.get_running_loop().sock_recv(link, 1 << 20)


async def test_a_client_that_reads_nothing_is_let_go(api: Api) -> None:
    """After two heartbeats in which it took nothing; its place is free again."""
    async with served(api.app(heartbeat=50 * MILLISECOND), stop=api.stop) as url, not_reading(url):
        assert api.servicer.event_log.followers == 1
        await flood(api, lambda: not api.servicer.event_log.followers)


async def test_an_event_is_encoded_once_for_all(api: Api) -> None:
    """However many follow."""
    encoded: list[str] = []

    def encode(event: EventView) -> bytes:
        encoded.append(event.id)
        return event.type.encode()

    log = api.servicer.event_log
    streams = [log.follow_encoded(None, None, encode) for _ in range(3)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await api.clock.sleep(0)
    async with api.client() as client:
        await client.post("/v1/jobs", json=HOURLY)
    assert await asyncio.gather(*waiting) == [b"job.created"] * 3
    assert len(encoded) == 1
    for stream in streams:
        await stream.aclose()
