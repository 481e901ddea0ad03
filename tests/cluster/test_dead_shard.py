"""Three real PostgreSQL servers, of which one is killed, or frozen, under load: the other two do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import statistics
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from duly.adapters.guarded_store import GuardedStore, Limits
from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.postgres_store import PostgresStore
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.system_clock import SystemClock
from duly.cluster.postgres_server import PostgresServer, free_ports
from duly.cluster.supervision import launch
from duly.core.contract import FunctionSpec, JobSpec
from duly.core.errors import OutcomeUnknown, Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.core.job_ids import keyed_job_id
from duly.core.model import JobId
from duly.core.ring import map_slots
from duly.ports import JobQuery
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

SHARDS = ("s0", "s1", "s2")
DEAD = "s1"
SPEC = JobSpec(task=FunctionSpec(name="m:f"), schedule="in 1h")
CALLERS = 8
SAMPLES = 150
LIMITS = Limits(point=2 * SECOND, scan=3 * SECOND)


class Server:
    """A PostgreSQL that can be killed, frozen and started again."""

    def __init__(self, home: Path) -> None:
        self.server = PostgresServer(
            home,
            port=free_ports(1)[0],
            password="for-tests",
            log=home / "log",
            durable=True,
            options=("shared_buffers=16MB", "max_connections=40"),
        )
        self.server.make()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to come up."""
        self.process = launch(self.server.program())

    @property
    def is_ready(self) -> bool:
        """It takes connections."""
        assert self.process is not None
        return self.server.is_ready(self.process.pid)

    def kill(self) -> None:
        """SIGKILL the server and wait for all that it had started, which end by themselves then."""
        assert self.process is not None
        backends = self._backends()
        self.process.kill()
        self.process.wait(10)
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """To the server and each of its backends."""
        assert self.process is not None
        for pid in (self.process.pid, *self._backends()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _backends(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> None:
        """At the end of the tests."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.send_signal(self.server.program().end)
            self.process.wait(30)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One for each shard."""
    home = tmp_path_factory.mktemp("shards")
    home.chmod(0o711)
    made = {}
    try:
        for shard in SHARDS:
            folder = home / shard
            folder.mkdir()
            made[shard] = Server(folder)
            made[shard].start()
        yield made
    finally:
        for server in made.values():
            server.stop()


class Site:
    """A servicer over the three, and a load of creations."""

    def __init__(self, servers: dict[str, Server], folder: Path) -> None:
        self.clock = SystemClock()
        self.servers = servers
        self.guards = {
            shard: GuardedStore(
                PostgresStore(server.server.url, shard=shard, clock=self.clock),
                clock=self.clock,
                limits=LIMITS,
            )
            for shard, server in servers.items()
        }
        self.store = ShardedStore(self.guards, map_slots(dict.fromkeys(SHARDS, 1.0)), clock=self.clock)
        self.servicer = Servicer(
            name="here",
            store=self.store,
            broker=LocalBroker(self.clock),
            blobs=ObstoreBlobs(folder / "blobs", clock=self.clock),
            clock=self.clock,
            entropy=secrets.token_bytes,
            dice=lambda: 0.5,
            telemetry=Telemetry(),
            alone=False,
        )
        self.created: list[JobId] = []
        self.unknown = 0
        self._stop = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Create jobs from several callers at once, until `end`."""
        self._callers = [asyncio.ensure_future(self._create()) for _ in range(CALLERS)]

    async def _create(self) -> None:
        while not self._stop.is_set():
            try:
                job, _ = await self.servicer.create_job(SPEC)
            except OutcomeUnknown:  # it was being committed when its shard went
                self.unknown += 1
            else:
                self.created.append(JobId(job.id))

    async def end(self) -> None:
        """Raises what a creation raised, other than that its outcome is unknown."""
        self._stop.set()
        await asyncio.gather(*self._callers)

    async def more(self, count: int) -> list[JobId]:
        """Wait until so many more jobs have been created; returns them."""
        before = len(self.created)
        while len(self.created) < before + count:
            assert not any(caller.done() for caller in self._callers), await asyncio.gather(*self._callers)
            await self.clock.sleep(5 * MILLISECOND)
        return self.created[before:]

    async def until(self, shard: str, *, is_open: bool) -> None:
        """Wait for the circuit of a shard."""
        while self.guards[shard].open != is_open:
            await self.clock.sleep(5 * MILLISECOND)

    async def median(self, job_ids: list[JobId]) -> float:
        """µs that it takes to read a job, at the median of many."""
        took = []
        for number in range(SAMPLES):
            begun = self.clock.monotonic()
            assert (await self.store.get([job_ids[number % len(job_ids)]]))[0] is not None
            took.append(self.clock.monotonic() - begun)
        return statistics.median(took)

    def on(self, shard: str) -> list[JobId]:
        """The jobs that were created on a shard."""
        return [job_id for job_id in self.created if self.store.shard_of(job_id) == shard]

    def key_on(self, shard: str) -> str:
        """An idempotency key of a job on a shard."""
        return next(key for key in map(str, range(999)) if self.store.shard_of(keyed_job_id("default", key)) == shard)


@pytest.fixture
async def site(servers: dict[str, Server], tmp_path: Path) -> AsyncIterator[Site]:
    """All three up and migrated."""
    made = Site(servers, tmp_path)
    while not all(server.is_ready for server in servers.values()):
        await made.clock.sleep(10 * MILLISECOND)
    await made.store.migrate()
    yield made
    await made.store.close()


async def dead_shard_is_the_only_one_that_is(site: Site, alive: list[JobId], before: float) -> None:
    """What clients see while a shard does not answer."""
    created = await site.more(200)
    assert DEAD not in {site.store.shard_of(job_id) for job_id in created}
    page = await site.servicer.list_jobs(JobQuery(limit=10))
    assert (page.partial, page.missing_shards, len(page.items)) == (True, [DEAD], 10)
    assert (await site.servicer.stats()).missing_shards == [DEAD]
    with pytest.raises(Unavailable) as told:
        await site.servicer.create_job(SPEC, key=site.key_on(DEAD))
    assert told.value.retry_after
    assert (await site.servicer.create_job(SPEC, key=site.key_on("s2")))[1] in (True, False)
    assert await site.servicer.ready() == []
    assert await site.servicer.missing()
    assert await site.median(alive) <= 5 * before  # in truth alike: it is a busy machine that this leaves room for


async def nothing_is_lost(site: Site) -> None:
    """All that was said to be created is there, once, and on its shard."""
    while (await site.servicer.list_jobs(JobQuery(limit=1))).partial:
        await site.clock.sleep(20 * MILLISECOND)
    rows = [await site.store.get(site.created[start : start + 500]) for start in range(0, len(site.created), 500)]
    assert all(row is not None for part in rows for row in part)
    assert max(Counter(site.created).values()) == 1
    assert site.unknown <= 2 * CALLERS


@pytest.mark.slow
async def test_a_shard_is_killed_and_comes_back(site: Site) -> None:
    """SIGKILL: connections break at once."""
    site.begin()
    await site.more(300)
    alive = site.on("s0") + site.on("s2")
    assert site.on(DEAD)
    before = await site.median(alive)
    site.servers[DEAD].kill()
    await site.until(DEAD, is_open=True)
    await dead_shard_is_the_only_one_that_is(site, alive, before)
    site.servers[DEAD].start()
    await site.until(DEAD, is_open=False)
    while not {site.store.shard_of(job_id) for job_id in await site.more(20)} >= {DEAD}:
        pass
    await site.end()
    await nothing_is_lost(site)


@pytest.mark.slow
async def test_a_shard_is_frozen_and_thaws(site: Site) -> None:
    """SIGSTOP: nothing breaks, and nothing answers."""
    site.begin()
    await site.more(300)
    alive = site.on("s0") + site.on("s2")
    before = await site.median(alive)
    site.servers[DEAD].signal(signal.SIGSTOP)
    try:
        await site.until(DEAD, is_open=True)
        await dead_shard_is_the_only_one_that_is(site, alive, before)
    finally:
        site.servers[DEAD].signal(signal.SIGCONT)
    await site.until(DEAD, is_open=False)
    await site.end()
    await nothing_is_lost(site)
