"""Event streams over a real server: what happens as it happens, logs while they are written, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest

from duly.core.contract import EventView
from duly.core.instants import MILLISECOND, SECOND
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
