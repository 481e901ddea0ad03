"""`duly bench --cluster`: a whole cluster on this machine, real servers and a process a role, measured row by row.

The measuring process is one servicer more: it creates through the use-cases over the same stores and broker, and reads
what the stores have of each run. Everything shares the machine's cores, the load generator too.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from duly.adapters.system_clock import SystemClock
from duly.bench import measure
from duly.bench.measure import NOOP, Figure, function, lateness_figures, quantiles
from duly.boot.roles import Colleague, colleague
from duly.cluster.cluster import Cluster, Plan, running
from duly.core.contract import CommandSpec, JobSpec
from duly.core.instants import MILLISECOND, SECOND, format_instant
from duly.core.model import JobId, Run
from duly.settings import Settings, load

PLAN: Final = Plan(shards=2, servicers=2, schedulers=2, workers=2)
CHOICES: Final = ("ready", "create", "throughput", "lateness", "burst", "worker", "scheduler", "memory")
HELD: Final = 8  # runs that are going when a worker is killed


async def figures(only: tuple[str, ...] = (), *, quick: bool = False) -> AsyncIterator[Figure]:
    """Each figure as soon as it is had."""
    wanted = only or CHOICES
    clock = SystemClock()
    settings = Settings(port=0, functions="any", slots=2, log_level="warning", retention_interval=3600 * SECOND)
    with tempfile.TemporaryDirectory(prefix="duly-bench-") as directory:
        began = clock.monotonic()
        async with running(PLAN, settings, Path(directory), clock=clock, asked=asyncio.Event()) as cluster:
            assert cluster is not None
            if "ready" in wanted:
                yield _ready(clock.monotonic() - began)
            own = load(path=cluster.home.settings_file).settings
            async with colleague(msgspec.structs.replace(own, name=f"bench-{secrets.token_hex(2)}")) as here:
                await _warm(here)
                for name in wanted:
                    if name in MEASUREMENTS:
                        async for figure in MEASUREMENTS[name](cluster, here, quick):
                            yield figure


def _ready(took: int) -> Figure:
    note = f"{PLAN.shards} PostgreSQL, {PLAN.nats} NATS, {PLAN.servicers} + {PLAN.schedulers} + {PLAN.workers} roles"
    return Figure(name="duly cluster, empty directory, to ready", value=took / 1e6, unit="s", target="≤ 10", note=note)


async def _warm(here: Colleague) -> None:
    while await here.servicer.ready():
        await here.clock.sleep(5 * MILLISECOND)
    before = await measure.ended_so_far(here)
    await measure.create(here, [function(NOOP)] * 2_000)
    await measure.ended(here, 2_000, before)


async def _create(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    count = 20_000 if quick else 50_000
    yield msgspec.structs.replace(await measure.bulk_create(here, count), target="≥ 60,000")
    body = {"task": {"kind": "function", "name": NOOP}, "schedule": "in 1d"}
    async with httpx2.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False) as client:
        batches = max(2, count // 5_000)
        batched = await measure.timed(client, "/v1/jobs/batch", {"jobs": [body] * 5_000}, batches, 2)
        singly = await measure.timed(client, "/v1/jobs", body, count // 20, 32)
    yield Figure(
        name="bulk create, HTTP", value=batched * 5_000, unit="jobs/s", target="≥ 20,000", note="two callers, one URL"
    )
    yield Figure(name="single create, HTTP", value=singly, unit="jobs/s", note="32 callers, one connection each")


async def _throughput(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    for name in (NOOP, measure.ANOOP):
        for figure in await measure.throughput(here, 20_000 if quick else 60_000, name):
            yield msgspec.structs.replace(figure, target="≥ 30,000" if figure.target else "")


async def _lateness(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    late, bare = await measure.steady(here, 100, 8 if quick else 20)
    for figure in lateness_figures("lateness, 100 runs/s", late):
        yield figure
    yield Figure(name="bare timer beside it: p99", value=quantiles(bare).p99, unit="ms", note="clock_nanosleep")


async def _burst(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    for figure in lateness_figures("1,000 runs at one instant", await measure.burst(here, 1_000)):
        yield figure


async def _worker(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    """From SIGKILL of a worker to the start of the last of its runs' next attempts."""
    task = JobSpec(task=CommandSpec(argv=["/bin/sleep", "30"]), schedule="now")
    ids = await measure.create(here, [task] * (PLAN.workers * 2))
    await _until(here, lambda runs: all(run.started_at for run in runs), ids)
    victims = [run for run in await _runs(here, ids) if (run.worker or "").startswith("worker-0")]
    killed_at = here.clock.wall()
    await cluster.members["worker-0"].kill()
    theirs = [run.job_id for run in victims]
    again = await _until(here, lambda runs: all(run.attempt == 2 and run.started_at for run in runs), theirs)
    spent = max(run.started_at or 0 for run in again) - killed_at
    await measure.delete(here, ids)
    yield Figure(
        name="a worker killed: its runs start again",
        value=spent / 1e6,
        unit="s",
        target="≤ 5 (one lease)",
        note=f"{len(victims)} runs",
    )


async def _scheduler(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    """How late the latest run is that was due after a scheduler that leads was killed."""
    first = here.clock.wall() + 2 * SECOND
    instants = [first + index * 20 * MILLISECOND for index in range(500)]
    before = await measure.ended_so_far(here)
    ids = await measure.create(here, [function(NOOP, format_instant(at), max_lateness="1m") for at in instants])
    await here.clock.sleep(first + 3 * SECOND - here.clock.wall())
    led = {
        shard.shard: shard.term.owner.rpartition("-")[0] for shard in await here.store.stats() if shard.term is not None
    }
    victim = min(led.values())
    killed_at = here.clock.wall()
    await cluster.members[victim].kill()
    await measure.ended(here, len(ids), before)
    found = [run for run in await measure.runs_of(here, ids) if led.get(here.store.shard_of(run.job_id)) == victim]
    runs = [run for run in found if run.scheduled_at >= killed_at]
    starts = sorted(run.started_at or 0 for run in found)
    gap = max(later - earlier for earlier, later in pairwise(starts) if later >= killed_at)
    yield Figure(
        name="a scheduler killed: until the next start",
        value=gap / 1e6,
        unit="s",
        target="≤ 3",
        note="longest time without a start on its shards, runs due all the time",
    )
    yield Figure(
        name="a scheduler killed: the latest start after it",
        value=max(run.lateness or 0 for run in runs) / 1e6,
        unit="s",
        note=f"of {len(runs)} runs due after it; some were on their way",
    )


async def _memory(cluster: Cluster, here: Colleague, quick: bool) -> AsyncIterator[Figure]:
    for name, member in cluster.members.items():
        if "-" in name and member.pid is not None:
            yield Figure(name=f"memory, {name}", value=measure.resident(member.pid), unit="MiB", target="≤ 150")


async def _runs(here: Colleague, ids: list[JobId]) -> list[Run]:
    from duly.ports import RunQuery

    pages = await asyncio.gather(*(here.store.page_runs(RunQuery(job_id=job_id, limit=1)) for job_id in ids))
    return [page.items[0] for page in pages if page.items]


async def _until(here: Colleague, holds: Callable[[list[Run]], bool], ids: list[JobId]) -> list[Run]:
    deadline = here.clock.monotonic() + measure.PATIENCE
    while True:
        runs = await _runs(here, ids)
        if len(runs) == len(ids) and holds(runs):
            return runs
        if here.clock.monotonic() > deadline:
            raise RuntimeError("the runs do not get there")
        await here.clock.sleep(20 * MILLISECOND)


MEASUREMENTS: dict[str, Callable[[Cluster, Colleague, bool], AsyncIterator[Figure]]] = {
    "create": _create,
    "throughput": _throughput,
    "lateness": _lateness,
    "burst": _burst,
    "worker": _worker,
    "scheduler": _scheduler,
    "memory": _memory,
}
