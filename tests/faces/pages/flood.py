"""What a flood of events costs while people watch: `python tests/faces/pages/flood.py` (some minutes).

A real `duly up`, so many streams of `/v1/events` or of the home page, and so many runs a second that are created and
end. A row: streams, runs that ended a second, events that a stream was sent a second and those that it was told were
left out, updates a second of a page (4 at most), the CPU of the server (100 % = one core), p99 and median of a small
request beside it (ms), the server's memory (MiB). The first row of a rate has no streams: what the runs alone cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faces.pages.weigh import cpu
from system.served import Served

TICK = 0.1  # seconds between two batches of jobs


class Stream:
    """One client that reads all it is sent."""

    def __init__(self, url: str, path: str) -> None:
        self.address = urlsplit(url)
        self.path = path
        self.frames = self.skipped = 0
        self.opened = asyncio.Event()

    async def read(self) -> None:
        """Until it is cancelled; frames are counted, not understood."""
        reader, writer = await asyncio.open_connection(self.address.hostname, self.address.port, limit=1 << 22)
        writer.write(f"GET {self.path} HTTP/1.1\r\nHost: {self.address.netloc}\r\n\r\n".encode())
        tail = b""
        with contextlib.closing(writer):
            while piece := await reader.read(1 << 18):
                if b": connected" in piece:
                    self.opened.set()
                text = tail + piece
                self.frames += text.count(b"\n\n") - tail.count(b"\n\n")
                at = -1
                while (at := text.find(b"event: stream.skipped\ndata: ", at + 1)) >= 0 and b"\n\n" in text[at:]:
                    line = text[at + 28 : text.index(b"\n", at + 28)]
                    self.skipped += msgspec.json.decode(line)["data"]["events"]
                    text = text[at + 28 :]
                tail = text[-1:]


async def load(client: httpx2.AsyncClient, rate: int, seconds: float) -> None:
    """Create runs at a rate."""
    job = {"task": {"kind": "function", "name": "time:time_ns"}, "schedule": "now"}
    body = msgspec.json.encode({"jobs": [job] * max(1, int(rate * TICK))})
    end, following = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < end:
        (
            await client.post("/v1/jobs/batch", content=body, headers={"content-type": "application/json"})
        ).raise_for_status()
        following += TICK
        await asyncio.sleep(max(0, following - time.monotonic()))  # noqa: TID251 - this is a clock of its own


async def probe(client: httpx2.AsyncClient, times: list[float]) -> None:
    """A small request, twenty times a second."""
    while True:
        began = time.monotonic()
        (await client.get("/v1/jobs?limit=1")).raise_for_status()
        times.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(0.05)  # noqa: TID251 - as above


async def measure(served: Served, kind: str, count: int, rate: int, seconds: float) -> None:
    """One row."""
    path = "/v1/events" if kind == "events" else "/live?page=/"
    streams = [Stream(served.url, path) for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=served.url, timeout=60, trust_env=False))
        tasks = [asyncio.create_task(stream.read()) for stream in streams]
        stack.callback(lambda: [task.cancel() for task in tasks])
        await asyncio.gather(*(stream.opened.wait() for stream in streams))
        await load(client, rate, 2)
        times: list[float] = []
        tasks.append(asyncio.create_task(probe(client, times)))
        before = await ended(client)
        frames, skips = sum(each.frames for each in streams), sum(each.skipped for each in streams)
        used, began = cpu(served.pid), time.monotonic()
        await load(client, rate, seconds)
        took = time.monotonic() - began
        share = (cpu(served.pid) - used) / took / 10
        done = await ended(client) - before
        each = max(1, count) * took
        sent = (sum(each_.frames for each_ in streams) - frames) / each
        left = (sum(each_.skipped for each_ in streams) - skips) / each
        times.sort()
        memory = resident(served.pid)
        p99, median = times[int(len(times) * 0.99)], times[len(times) // 2]
        sys.stdout.write(
            f"{kind:8}{count:8}{rate:8}{done / took:9.0f}{sent:10.1f}{left:10.1f}"
            f"{share:7.0f}%{p99:9.1f}{median:9.1f}{memory:8}\n"
        )
        sys.stdout.flush()


def resident(pid: int) -> int:
    """MiB of memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


async def ended(client: httpx2.AsyncClient) -> int:
    """Runs that have succeeded."""
    return int((await client.get("/v1/stats")).json()["ended"].get("succeeded", 0))


def main() -> None:
    """All rows asked for, each on a server of its own."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--streams", type=int, nargs="+", default=[0, 50, 200, 500])
    asked.add_argument("--rates", type=int, nargs="+", default=[1_000, 5_000])
    asked.add_argument("--kinds", nargs="+", default=["events", "pages"])
    asked.add_argument("--seconds", type=float, default=10)
    given = asked.parse_args()
    sys.stdout.write(
        f"{'streams':8}{'count':>8}{'asked/s':>8}{'ended/s':>9}{'sent/s':>10}{'left/s':>10}"
        f"{'cpu':>8}{'p99':>9}{'median':>9}{'MiB':>8}\n"
    )
    for rate in given.rates:
        for kind in given.kinds:
            for count in given.streams:
                with tempfile.TemporaryDirectory() as folder:
                    served = Served(Path(folder) / "data", "--functions", "any")
                    served.start().close()
                    try:
                        asyncio.run(measure(served, kind, count, rate, given.seconds))
                    finally:
                        served.stop()


if __name__ == "__main__":
    main()
