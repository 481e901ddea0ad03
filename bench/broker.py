"""What the NATS broker does here, over a nats-server of its own: `python bench/broker.py [--seconds 3] [--inline N]`.

Prints messages/s through one subscriber, round trips of requests, and sizes and costs of the messages that duly sends,
inline and by the blob store.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from duly.adapters.nats_broker import NatsBroker
from duly.adapters.nats_link import NatsOptions
from duly.adapters.nats_wire import INLINE
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.system_clock import SystemClock
from duly.cluster.nats_server import NatsServers
from duly.core.messages import AnyMessage, Assign, Assignment, Beat, Ended, Hint, Report, Succeeded
from duly.core.model import FunctionTask, Job, JobId, Run, RunState, Worker, WorkerId

AT = 1_800_000_000_000_000
WORKER = WorkerId("w-3f2a11bc")
KEY = b"k" * 32


def _job(number: int, argument: int) -> Job:
    arguments = msgspec.Raw(b'["' + b"x" * argument + b'"]')
    return Job(
        id=JobId(f"0197b3c1-7c1e-7000-8000-{number:012x}"),
        task=FunctionTask(name="reports:nightly", args=arguments),
        schedule="every 1m",
        created_at=AT,
        updated_at=AT,
        anchored_at=AT,
    )


def _run(job: Job, number: int) -> Run:
    return Run(
        job_id=job.id,
        scheduled_at=AT + number,
        due_at=AT + number,
        state=RunState.DISPATCHED,
        attempt=1,
        worker=WORKER,
        dispatched_at=AT,
    )


def typical() -> dict[str, AnyMessage]:
    """The messages of a loaded duly."""
    jobs = [_job(number, 20) for number in range(512)]
    large = [_job(number, 2_000) for number in range(512)]
    runs = [_run(job, number) for number, job in enumerate(jobs)]
    done = Succeeded(attempt=1, worker=WORKER, started_at=AT, finished_at=AT + 5)
    capacity = {"process": 4, "async": 1_000}

    def assign(of: list[Job]) -> Assign:
        batch = tuple(Assignment(_run(job, number), job) for number, job in enumerate(of))
        return Assign(shard="s0", fence=3, number=7, now=AT, batch=batch)

    row = Worker(id=WORKER, slots=4)
    return {
        "Assign of 1": assign(jobs[:1]),
        "Assign of 512": assign(jobs),
        "Assign of 512, 2 kB arguments": assign(large),
        "Report of 512": Report(
            worker=WORKER, shard="s0", capacity=capacity, events=tuple((run.key, done) for run in runs)
        ),
        "Ended of 512, with next runs": Ended(
            shard="s0",
            worker=WORKER,
            keys=tuple((run.key, 1) for run in runs),
            capacity=capacity,
            opened=tuple(zip(runs, jobs, strict=True)),
        ),
        "Beat, holding nothing": Beat(worker=row, capacity=capacity, seen={"s0": 4}, sent=AT),
        "Beat, holding 1,000": Beat(
            worker=row, capacity=capacity, held=tuple((_run(jobs[n % 512], n).key, 1) for n in range(1_000))
        ),
    }


def _cost(work: Callable[[], object]) -> float:
    """µs, the best of three."""
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(100):
            work()
        best = min(best, (time.perf_counter() - begun) / 100)
    return best * 1e6


def sizes() -> None:
    """Bytes on the wire, and what encoding, decoding and signing cost."""
    decode = msgspec.json.Decoder(AnyMessage).decode
    print(f"\n{'message':32} {'JSON bytes':>10} {'encode µs':>10} {'decode µs':>10} {'MAC µs':>8}")
    for name, message in typical().items():
        body = msgspec.json.encode(message)
        encode, read = (
            _cost(lambda message=message: msgspec.json.encode(message)),
            _cost(lambda body=body: decode(body)),
        )
        mac = _cost(lambda body=body: hmac.digest(KEY, body, "sha256"))
        print(f"{name:32} {len(body):10,} {encode:10.1f} {read:10.1f} {mac:8.1f}")


async def _through(here: NatsBroker, there: NatsBroker, message: AnyMessage, seconds: float) -> float:
    """Messages a second that a subscriber has handled, with at most 2,000 of them under way."""
    heard, published = 0, 0
    more = asyncio.Event()

    async def handler(_: AnyMessage) -> None:
        nonlocal heard
        heard += 1
        more.set()

    subscription = await here.subscribe("bench", handler)
    window = 2_000 if len(msgspec.json.encode(message)) < 10_000 else 16
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for _ in range(min(100, window)):
            await there.publish("bench", message)
            published += 1
        while published - heard > window:
            more.clear()
            await more.wait()
        await asyncio.sleep(0)
    while heard < published:
        more.clear()
        await more.wait()
    rate = heard / (time.perf_counter() - begun)
    await subscription.stop()
    return rate


async def _round_trips(
    here: NatsBroker, there: NatsBroker, message: AnyMessage, seconds: float
) -> tuple[float, float, int]:
    """p50 and p99 in µs, and how many."""

    async def answer(asked: AnyMessage) -> AnyMessage:
        return Hint(shard="s0")

    subscription = await here.subscribe("ask", answer)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        await there.request("ask", message, timeout=10_000_000)
        took.append((time.perf_counter() - begun) * 1e6)
    await subscription.stop()
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[98], len(took)


async def measure(seconds: float, inline: int) -> None:
    """Two brokers in this process, a server beside it."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        servers = NatsServers(Path(folder) / "nats", clock=clock, password=secrets.token_hex(8))
        await servers.start()
        try:
            for keys in ((), (KEY,)):
                brokers = [
                    NatsBroker(
                        servers.urls,
                        clock=clock,
                        blobs=ObstoreBlobs(Path(folder) / "blobs", clock=clock),
                        name="bench",
                        dice=lambda: 0.5,
                        entropy=secrets.token_bytes,
                        options=NatsOptions(keys=keys, inline=inline),
                    )
                    for _ in range(2)
                ]
                for broker in brokers:
                    assert await broker.start(within=10_000_000)
                print(f"\n{'signed' if keys else 'not signed'}")
                for name in ("Beat, holding nothing", "Assign of 1", "Assign of 512", "Assign of 512, 2 kB arguments"):
                    message = typical()[name]
                    rate = await _through(brokers[0], brokers[1], message, seconds)
                    p50, p99, count = await _round_trips(brokers[0], brokers[1], message, seconds)
                    print(
                        f"{name:32} {rate:10,.0f} messages/s    request p50 {p50:7,.0f} µs  p99 {p99:7,.0f} µs"
                        f"  ({count:,})"
                    )
                print("by blob store:", brokers[1].counters["by_blob"])
                for broker in brokers:
                    await broker.close()
        finally:
            await servers.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--inline", type=int, default=INLINE, help="bytes beyond which a body goes to the blob store")
    given = parser.parse_args()
    sizes()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(given.seconds, given.inline))


if __name__ == "__main__":
    main()
