"""The whole benchmark: a fresh embedded duly in a temporary directory, measured row by row.

`quick` takes about a minute; the full run stores a million other jobs as well. Ratios within one run are what to
compare: the bare timer runs beside duly, on the same cores, at the same time.
"""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from duly.bench import measure
from duly.bench.measure import ANOOP, NOOP, Figure, lateness_figures, quantiles
from duly.boot import Node, assemble
from duly.core.instants import MILLISECOND, SECOND
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry

FLAME = "DULY_BENCH_FLAME"  # a file to write the stacks of `stages` to, for a flame graph program
CHOICES = (
    "start",
    "create",
    "throughput",
    "stages",
    "lateness",
    "burst",
    "ticks",
    "command",
    "memory",
    "recovery",
    "stored",
    "growth",
)
ONLY_WHEN_NAMED = ("growth",)  # it writes several GB


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cores: int
    python: str
    system: str
    load: float

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        return cls(os.cpu_count() or 1, platform.python_version(), platform.platform(), os.getloadavg()[0])


async def figures(only: tuple[str, ...] = (), *, quick: bool = False) -> AsyncIterator[Figure]:
    """Each figure as soon as it is had."""
    wanted = only or tuple(name for name in CHOICES if name not in ONLY_WHEN_NAMED and not (quick and name == "stored"))
    with tempfile.TemporaryDirectory(prefix="duly-bench-") as directory:
        node = assemble(
            Settings(dir=directory, functions="any", retention_interval=3600 * SECOND), FunctionRegistry("any")
        )
        await node.start()
        try:
            await _warm(node)
            for name in wanted:
                async for figure in MEASUREMENTS[name](node, quick):
                    yield figure
        finally:
            await node.drain()
            await node.stop()


async def _warm(node: Node) -> None:
    """Children started, code paths met once, statements prepared."""
    while await node.servicer.ready():
        await node.clock.sleep(5 * MILLISECOND)
    for name in (NOOP, ANOOP):
        before = await measure.ended_so_far(node)
        await measure.create(node, [measure.function(name)] * 2_000)
        await measure.ended(node, 2_000, before)


async def _start(node: Node, quick: bool) -> AsyncIterator[Figure]:
    for figure in await measure.start_up(2 if quick else 5):
        yield figure


async def _create(node: Node, quick: bool) -> AsyncIterator[Figure]:
    count = 20_000 if quick else 50_000
    yield await measure.bulk_create(node, count)
    with tempfile.TemporaryDirectory(prefix="duly-bench-") as directory:
        for figure in await measure.http_create(Path(directory), count):
            yield figure


async def _throughput(node: Node, quick: bool) -> AsyncIterator[Figure]:
    for name in (NOOP, ANOOP):
        for figure in await measure.throughput(node, 20_000 if quick else 100_000, name):
            yield figure


async def _stages(node: Node, quick: bool) -> AsyncIterator[Figure]:
    found, profile = await measure.stages(node, 20_000 if quick else 100_000)
    for figure in found:
        yield figure
    if FLAME in os.environ:
        with open(os.environ[FLAME], "w") as file:  # noqa: ASYNC230, PTH123 - nothing else is being served
            file.writelines(f"{line}\n" for line in profile.collapsed())


async def _lateness(node: Node, quick: bool) -> AsyncIterator[Figure]:
    seconds = 8 if quick else 20
    for label, name in (("sync", NOOP), ("async", ANOOP)):
        late, bare = await measure.steady(node, 100, seconds, name)
        beside = quantiles(bare)
        for figure in lateness_figures(
            f"lateness, 100 runs/s, {label}", late, target=f"≤ bare + 0.5 = {beside.p99 + 0.5:.2f}"
        ):
            yield figure
        yield Figure(name=f"bare timer beside it, {label}: p99", value=beside.p99, unit="ms", note="clock_nanosleep")


async def _burst(node: Node, quick: bool) -> AsyncIterator[Figure]:
    for label, name, target in (("sync", NOOP, "≤ 10"), ("async", ANOOP, "≤ 15")):
        late = await measure.burst(node, 1_000, name)
        for figure in lateness_figures(f"1,000 runs at one instant, {label}", late, target=target):
            yield figure


async def _ticks(node: Node, quick: bool) -> AsyncIterator[Figure]:
    late, skipped = await measure.every_second(node, 6 if quick else 30)
    for figure in lateness_figures("every-second job", late):
        yield figure
    yield Figure(name="every-second job: skipped ticks", value=skipped, unit="ticks", target="0")


async def _command(node: Node, quick: bool) -> AsyncIterator[Figure]:
    late = await measure.command_start(node, 20 if quick else 100)
    for figure in lateness_figures("start of a command", late):
        yield figure


async def _memory(node: Node, quick: bool) -> AsyncIterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="duly-bench-") as directory:
        for figure in await measure.memory(Path(directory), 100_000 if quick else 1_000_000):
            yield figure


async def _recovery(node: Node, quick: bool) -> AsyncIterator[Figure]:
    yield await measure.recovery(node)


async def _stored(node: Node, quick: bool) -> AsyncIterator[Figure]:
    """Lateness and throughput again, with a million other jobs waiting in the store."""
    count = 100_000 if quick else 1_000_000
    yield await measure.fill(node, count)
    late, bare = await measure.steady(node, 100, 8 if quick else 20)
    target = f"≤ bare + 0.5 = {quantiles(bare).p99 + 0.5:.2f}"
    for figure in lateness_figures(f"lateness, 100 runs/s, {count:,} stored", late, target=target):
        yield figure
    for figure in await measure.throughput(node, 20_000 if quick else 100_000):
        yield msgspec.structs.replace(figure, name=f"{figure.name}, {count:,} stored", target="")


async def _growth(node: Node, quick: bool) -> AsyncIterator[Figure]:
    """The same figures with more and more in the store: jobs that wait, then finished runs."""
    small, large, history = (10_000, 100_000, 100_000) if quick else (100_000, 1_000_000, 10_000_000)
    async for figure in _grown(node, quick, "nothing else"):
        yield figure
    yield await measure.fill(node, small)
    async for figure in _grown(node, quick, f"{small:,} jobs"):
        yield figure
    yield await measure.fill(node, large - small)
    async for figure in _grown(node, quick, f"{large:,} jobs"):
        yield figure
    yield await measure.finished_history(node, history)
    async for figure in _grown(node, quick, f"{large:,} jobs, {history:,} finished runs"):
        yield figure


async def _grown(node: Node, quick: bool, stored: str) -> AsyncIterator[Figure]:
    late, bare = await measure.steady(node, 100, 5 if quick else 20)
    target = f"≤ bare + 0.5 = {quantiles(bare).p99 + 0.5:.2f}"
    for figure in lateness_figures(f"lateness, 100 runs/s; stored: {stored}", late, target=target):
        yield figure
    for figure in await measure.throughput(node, 20_000 if quick else 100_000):
        yield msgspec.structs.replace(figure, name=f"{figure.name}; stored: {stored}", target="")


MEASUREMENTS: dict[str, Callable[[Node, bool], AsyncIterator[Figure]]] = {
    "start": _start,
    "create": _create,
    "throughput": _throughput,
    "stages": _stages,
    "lateness": _lateness,
    "burst": _burst,
    "ticks": _ticks,
    "command": _command,
    "memory": _memory,
    "recovery": _recovery,
    "stored": _stored,
    "growth": _growth,
}


def run(
    only: tuple[str, ...],
    *,
    quick: bool,
    each: Callable[[Figure], None],
    figures: Callable[..., AsyncIterator[Figure]] = figures,
) -> list[Figure]:
    """All figures, `each` called with one as soon as it is had."""
    import uvloop

    async def collect() -> list[Figure]:
        found = []
        async for figure in figures(only, quick=quick):
            found.append(figure)
            each(figure)
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(collect())
