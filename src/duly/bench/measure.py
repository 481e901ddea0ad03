"""The measurements: each takes a running node and gives figures. Nothing here is estimated.

A lateness is what the store has of a run: its code's first instruction minus the time it was due, in µs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import httpx2
import msgspec

from duly.bench.stages import Profile, profiled
from duly.core.contract import CommandSpec, FunctionSpec, JobSpec
from duly.core.definition import define_job
from duly.core.instants import MILLISECOND, MINUTE, SECOND, format_instant
from duly.core.job_ids import mint_job_id
from duly.core.model import JobId, Run, RunState, WorkerId
from duly.ports import Clock, RunQuery, Store
from duly.roles.servicer import Servicer

NOOP = "duly.bench.tasks:noop"
ANOOP = "duly.bench.tasks:anoop"
PATIENCE = 120 * SECOND
_DULY = (sys.executable, "-m", "duly.cli")


class Measured(Protocol):
    """What is measured: a node in this process, or a servicer of a cluster."""

    @property
    def clock(self) -> Clock:
        """The clock of this machine."""
        ...

    @property
    def store(self) -> Store:
        """What the outcomes are read from."""
        ...

    @property
    def servicer(self) -> Servicer:
        """What is asked."""
        ...


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row: a value with its unit, the target of the design where there is one, and how it was had."""

    name: str
    value: float
    unit: str
    target: str = ""
    note: str = ""


class Quantiles(msgspec.Struct, frozen=True):
    """Of lateness, in ms; `early` counts those below zero."""

    p50: float
    p99: float
    largest: float
    early: int
    count: int


def quantiles(late: Sequence[int]) -> Quantiles:
    """The quantiles of latenesses in µs."""
    ordered = sorted(late)
    if not ordered:
        raise RuntimeError("nothing was measured")
    return Quantiles(
        p50=ordered[len(ordered) // 2] / 1000,
        p99=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1000,
        largest=ordered[-1] / 1000,
        early=sum(value < 0 for value in ordered),
        count=len(ordered),
    )


def lateness_figures(name: str, late: Sequence[int], *, target: str = "", note: str = "") -> list[Figure]:
    """Rows p50, p99, max and the count of early starts."""
    found = quantiles(late)
    return [
        Figure(name=f"{name}: p50", value=found.p50, unit="ms"),
        Figure(name=f"{name}: p99", value=found.p99, unit="ms", target=target),
        Figure(name=f"{name}: max", value=found.largest, unit="ms"),
        Figure(name=f"{name}: early", value=found.early, unit="runs", target="0", note=note or f"{found.count} runs"),
    ]


def function(name: str, at: str = "now", **fields: object) -> JobSpec:
    """A one-time job of a function."""
    mode: Literal["sync", "async"] = "async" if name == ANOOP else "sync"
    return msgspec.structs.replace(JobSpec(task=FunctionSpec(name=name, mode=mode), schedule=at), **fields)


async def create(node: Measured, specs: Sequence[JobSpec], chunk: int = 5_000) -> list[JobId]:
    """Create jobs through the servicer's batch call; returns their ids."""
    ids: list[JobId] = []
    for start in range(0, len(specs), chunk):
        answer = await node.servicer.create_specs(specs[start : start + chunk])
        if answer.failed:
            raise RuntimeError(f"{answer.failed} jobs were refused")
        ids.extend(JobId(item.id) for item in answer.results if item.id)
    return ids


async def ended(node: Measured, count: int, before: int) -> None:
    """Wait until `count` more runs have ended than `before`, by the store's own tally."""
    deadline = node.clock.monotonic() + PATIENCE
    while await ended_so_far(node) - before < count:
        if node.clock.monotonic() > deadline:
            raise RuntimeError(f"only {await ended_so_far(node) - before} of {count} runs ended")
        await node.clock.sleep(20 * MILLISECOND)  # asking costs, too


async def ended_so_far(node: Measured) -> int:
    """Finished runs of all states."""
    return sum(sum(shard.ended.values()) for shard in await node.store.stats())


async def runs_of(node: Measured, ids: Sequence[JobId]) -> list[Run]:
    """The newest run of each job."""
    rows = await node.store.get(ids)
    return [row.last_run for row in rows if row is not None and row.last_run is not None]


# -- rates --------------------------------------------------------------------------------------------------


async def bulk_create(node: Measured, count: int) -> Figure:
    """Jobs per second through the in-process batch call, a day ahead so that nothing else happens."""
    at = format_instant(node.clock.wall() + 86_400 * SECOND)
    specs = [function(NOOP, at)] * count
    started = node.clock.monotonic()
    ids = await create(node, specs)
    rate = count / ((node.clock.monotonic() - started) / 1e6)
    for start in range(0, len(ids), 10_000):
        await delete(node, ids[start : start + 10_000])
    return Figure(name="bulk create, Python", value=rate, unit="jobs/s", target="≥ 100,000", note=f"{count} jobs")


async def http_create(directory: Path, count: int) -> list[Figure]:
    """Jobs per second over HTTP into a `duly up` of its own: in batches of 5,000, and one by one from 32 callers."""
    options = ("up", "--dir", str(directory), "--port", "0", "--json", "--log-level", "warning")
    server = await asyncio.create_subprocess_exec(*_DULY, *options, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = msgspec.json.decode(await server.stdout.readline())["url"]
        body = {"task": {"kind": "function", "name": NOOP}, "schedule": "in 1d"}
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            batched = await timed(client, "/v1/jobs/batch", {"jobs": [body] * 5_000}, max(1, count // 5_000), 1)
            singly = await timed(client, "/v1/jobs", body, count // 20, 32)
    finally:
        server.terminate()
        await server.wait()
    return [
        Figure(name="bulk create, HTTP", value=batched * 5_000, unit="jobs/s", target="≥ 20,000", note="one caller"),
        Figure(name="single create, HTTP", value=singly, unit="jobs/s", note="32 callers, one connection each"),
    ]


async def timed(client: httpx2.AsyncClient, path: str, body: object, requests: int, callers: int) -> float:
    """Requests per second of so many callers."""
    content = msgspec.json.encode(body)
    left = iter(range(requests))

    async def call() -> None:
        for _ in left:
            answer = await client.post(path, content=content, headers={"content-type": "application/json"})
            answer.raise_for_status()

    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(call() for _ in range(callers)))
    return requests / (asyncio.get_running_loop().time() - started)


async def delete(node: Measured, ids: Sequence[JobId]) -> None:
    """Delete jobs, so that the next measurement starts clean."""
    for job_id in ids:
        await node.servicer.delete_job(job_id)


async def throughput(node: Measured, count: int, name: str = NOOP) -> list[Figure]:
    """No-op runs per second with every outcome stored: a backlog drained, and creating included."""
    figures = []
    label = "sync" if name == NOOP else "async"
    before = await ended_so_far(node)
    started = node.clock.monotonic()
    await create(node, [function(name)] * count)
    await ended(node, count, before)
    spent = (node.clock.monotonic() - started) / 1e6
    figures.append(
        Figure(name=f"no-op runs, {label}, created and run", value=count / spent, unit="runs/s", note=f"{count} runs")
    )
    before = await ended_so_far(node)
    lead = max(2 * SECOND, count * 40)
    at = node.clock.wall() + lead
    await create(node, [function(name, format_instant(at), max_lateness="1h")] * count)
    await node.clock.sleep(max(0, at - node.clock.wall()))
    started = node.clock.monotonic() - max(0, node.clock.wall() - at)  # creating them may have taken longer
    await ended(node, count, before)
    spent = (node.clock.monotonic() - started) / 1e6
    figures.append(
        Figure(
            name=f"no-op runs, {label}, outcome stored",
            value=count / spent,
            unit="runs/s",
            target="≥ 50,000" if name == NOOP else "",
            note=f"{count} due at one instant, drained",
        )
    )
    return figures


async def stages(node: Measured, count: int) -> tuple[list[Figure], Profile]:
    """µs of CPU per job created and per run drained, by stage; and the profile of the draining."""
    pids = children()
    before = await ended_so_far(node)
    at = node.clock.wall() + max(3 * SECOND, count * 60)
    specs = [function(NOOP, format_instant(at), max_lateness="1h")] * count
    with profiled(pids) as creating:
        await create(node, specs)
    await node.clock.sleep(max(0, at - node.clock.wall() - 600 * MILLISECOND))
    with profiled(pids) as draining:
        await ended(node, count, before)
    found = [_cost("create: event loop", creating.loop, count, "per job")]
    found += [_cost(f"create: {name}", spent, count, "per job") for name, spent in creating.threads.items()]
    found += [_cost(name, spent, count) for name, spent in draining.stages().items()]
    found.append(_cost("sum of the event loop", draining.loop, count))
    found += [_cost(f"thread {name}", spent, count) for name, spent in draining.threads.items()]
    found.append(_cost("function processes", draining.children, count))
    return found, draining


def _cost(name: str, seconds: float, count: int, note: str = "per run") -> Figure:
    return Figure(name=f"CPU, {name}", value=seconds / count * 1e6, unit="µs", note=note)


# -- punctuality --------------------------------------------------------------------------------------------


async def steady(node: Measured, per_second: int, seconds: int, name: str = NOOP) -> tuple[list[int], list[int]]:
    """Lateness of one-time runs at a steady rate, beside the bare timer in another process at the same time."""
    period = SECOND // per_second
    count = per_second * seconds
    first = node.clock.wall() + 2 * SECOND
    specs = [function(name, format_instant(first + index * period)) for index in range(count)]
    before = await ended_so_far(node)
    ids = await create(node, specs)
    await node.clock.sleep(max(0, first - node.clock.wall()))
    timer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "duly.bench.timer", str(period), str(count - per_second // 2), stdout=subprocess.PIPE
    )
    printed, _ = await timer.communicate()
    await ended(node, count, before)
    return [run.lateness or 0 for run in await runs_of(node, ids)], msgspec.json.decode(printed, type=list[int])


async def burst(node: Measured, count: int, name: str = NOOP) -> list[int]:
    """Lateness of runs that are all due at one instant, staged ahead."""
    before = await ended_so_far(node)
    at = format_instant(node.clock.wall() + 3 * SECOND)
    ids = await create(node, [function(name, at)] * count)
    await ended(node, count, before)
    return [run.lateness or 0 for run in await runs_of(node, ids)]


async def every_second(node: Measured, seconds: int) -> tuple[list[int], int]:
    """Lateness of an every-second job, and the ticks that it skipped."""
    job, _ = await node.servicer.create_job(function(NOOP, "every 1s"))
    await node.clock.sleep((seconds + 1) * SECOND)
    await node.servicer.pause_job(job.id)
    page = await node.store.page_runs(RunQuery(job_id=JobId(job.id), limit=1000, oldest_first=True))
    done = [run for run in page.items if run.state == RunState.SUCCEEDED]
    instants = [run.scheduled_at for run in done]
    skipped = (instants[-1] - instants[0]) // SECOND + 1 - len(instants)
    await node.servicer.delete_job(job.id)
    return [run.lateness or 0 for run in done], skipped


async def command_start(node: Measured, count: int) -> list[int]:
    """Lateness of commands that are due one after another, staged ahead."""
    first = node.clock.wall() + 2 * SECOND
    specs = [
        JobSpec(task=CommandSpec(argv=["/bin/true"]), schedule=format_instant(first + index * 100 * MILLISECOND))
        for index in range(count)
    ]
    before = await ended_so_far(node)
    ids = await create(node, specs)
    await ended(node, count, before)
    return [run.lateness or 0 for run in await runs_of(node, ids)]


async def start_up(times: int) -> list[Figure]:
    """The best of a few: `duly --help`, and `duly up` on an empty directory until /readyz answers 200."""
    loop = asyncio.get_running_loop()
    helps, ups = [], []
    for _ in range(times):
        begun = loop.time()
        await (await asyncio.create_subprocess_exec(*_DULY, "--help", stdout=subprocess.DEVNULL)).wait()
        helps.append(loop.time() - begun)
        with tempfile.TemporaryDirectory(prefix="duly-bench-") as directory:
            begun = loop.time()
            options = ("up", "--dir", directory, "--port", "0", "--json", "--log-level", "warning")
            server = await asyncio.create_subprocess_exec(*_DULY, *options, stdout=subprocess.PIPE)
            assert server.stdout is not None
            url = msgspec.json.decode(await server.stdout.readline())["url"]
            async with httpx2.AsyncClient(base_url=url) as client:
                while (await client.get("/readyz")).status_code != 200:
                    pass
            ups.append(loop.time() - begun)
            server.terminate()
            await server.wait()
    return [
        Figure(name="duly --help", value=min(helps), unit="s", target="≤ 0.25", note=f"best of {times}"),
        Figure(name="duly up to /readyz", value=min(ups), unit="s", target="≤ 1", note=f"best of {times}"),
    ]


# -- cost and recovery --------------------------------------------------------------------------------------


async def memory(directory: Path, count: int) -> list[Figure]:
    """Resident MiB of each process of a `duly up`: empty, and with `count` jobs stored that are due in a year."""
    options = ("up", "--dir", str(directory), "--port", "0", "--json", "--log-level", "warning")
    server = await asyncio.create_subprocess_exec(*_DULY, *options, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = msgspec.json.decode(await server.stdout.readline())["url"]
        body = {"task": {"kind": "function", "name": NOOP}, "schedule": "in 365d"}
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            found = _residents(server.pid, "empty")
            await timed(client, "/v1/jobs/batch", {"jobs": [body] * 5_000}, count // 5_000, 1)
            found += _residents(server.pid, f"{count:,} jobs stored")
    finally:
        server.terminate()
        await server.wait()
    return found


def _residents(pid: int, note: str) -> list[Figure]:
    named = [("server", pid), *((f"child {index}", child) for index, child in enumerate(children(pid), 1))]
    return [
        Figure(name=f"memory, {name}, {note}", value=resident(each), unit="MiB", target="≤ 150") for name, each in named
    ]


def children(pid: int | None = None) -> list[int]:
    """The pids of a process's children (this one's, by default), of whichever of its threads."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task").iterdir()
    return sorted({int(pid) for task in tasks for pid in (task / "children").read_text().split()})


def resident(pid: int) -> float:
    """Resident MiB of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def recovery(node: Measured) -> Figure:
    """From SIGKILL of every function process to the end of a run that is due after it."""
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    started = node.clock.monotonic()
    before = await ended_so_far(node)
    await create(node, [function(NOOP)])
    await ended(node, 1, before)
    spent = (node.clock.monotonic() - started) / 1000
    return Figure(name="recovery after killed function processes", value=spent, unit="ms", note="to the next end")


async def finished_history(node: Measured, count: int) -> Figure:
    """Store finished runs: those of jobs that ran every minute, a thousand each."""
    now = node.clock.wall()
    started = node.clock.monotonic()
    for number in range(0, count, 1_000):
        spec = JobSpec(task=FunctionSpec(name=NOOP), schedule="every 1m", name=f"history-{number}")
        job = define_job(spec, job_id=mint_job_id(now, os.urandom(10)), now=now)
        runs = [_finished(job.id, now - MINUTE * minutes - number) for minutes in range(1, min(1_000, count) + 1)]
        await node.store.create([(job, runs)])
    rate = count / ((node.clock.monotonic() - started) / 1e6)
    return Figure(name=f"history of {count:,} stored", value=rate, unit="runs/s", note="written for the growth row")


def _finished(job_id: JobId, at: int) -> Run:
    return Run(
        job_id=job_id,
        scheduled_at=at,
        due_at=at,
        state=RunState.SUCCEEDED,
        attempt=1,
        worker=WorkerId("w-history"),
        dispatched_at=at - 400_000,
        started_at=at + 40,
        finished_at=at + 90,
        lateness=40,
        isolation="process",
    )


async def fill(node: Measured, count: int) -> Figure:
    """Store jobs that are due in a year: the table that nothing may slow down with."""
    at = node.clock.wall() + 365 * 86_400 * SECOND
    started = node.clock.monotonic()
    for start in range(0, count, 10_000):
        await create(node, [function(NOOP, format_instant(at + start))] * min(10_000, count - start), chunk=10_000)
    rate = count / ((node.clock.monotonic() - started) / 1e6)
    return Figure(name=f"bulk create of {count:,}", value=rate, unit="jobs/s")
