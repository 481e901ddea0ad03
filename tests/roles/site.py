"""Two servicers behind real HTTP, a scheduler and a worker over one store, each with a NATS connection of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from duly.adapters.fallback_broker import FallbackBroker
from duly.adapters.http_broker import HttpBroker
from duly.adapters.nats_broker import NatsBroker
from duly.adapters.nats_link import NatsOptions
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.cluster.nats_server import NatsServers
from duly.core.contract import JobSpec, JobView
from duly.core.definition import decode
from duly.core.instants import SECOND
from duly.core.messages import NOTICES, AnyMessage
from duly.core.model import JobId, Run, WorkerId
from duly.core.tokens import Scope
from duly.faces.api import Access, HttpSettings, create_app
from duly.faces.tokens import TokenFile, create_token
from duly.ports import RunQuery
from duly.roles.herald import Herald
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.servicer import Servicer
from duly.roles.worker import Worker, WorkerSettings
from duly.tasks.attempt import Runner
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry
from nats_server import eventually
from roles.stage import Script


class CountingHttp(HttpBroker):
    """Which servicers' stand-ins were used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[str] = []

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        self.asked.append(type(message).__name__)
        return await super().request(subject, message, timeout=timeout)


class Site:
    """The parts of a small cluster in this process, with a real broker and real HTTP between them."""

    def __init__(self, folder: Path, nats: NatsServers) -> None:
        self.clock = SystemClock()
        self.nats = nats
        self.folder = folder
        self.store = SqliteStore(folder / "s0.db", shard="s0", clock=self.clock)
        self.blobs = ObstoreBlobs(folder / "blobs", clock=self.clock)
        self.servicers: list[Servicer] = []
        self.urls: list[str] = []
        self.script = Script(self.clock)  # type: ignore[arg-type]  # it only sleeps by it
        self.scheduler: Scheduler
        self.worker: Worker
        self.http: CountingHttp
        self.brokers: dict[str, NatsBroker] = {}
        self._stack = contextlib.AsyncExitStack()

    async def broker(self, name: str) -> NatsBroker:
        """A connection for one process."""
        options = NatsOptions(keys=(b"k" * 32,))
        broker = NatsBroker(
            self.nats.urls,
            clock=self.clock,
            blobs=self.blobs,
            name=name,
            dice=lambda: 0.0,
            entropy=secrets.token_bytes,
            options=options,
        )
        self.brokers[name] = broker
        self._stack.push_async_callback(broker.close)
        await broker.start(within=SECOND // 10 if not self.nats.pids else 10 * SECOND)
        return broker

    async def open(self, *, runners: bool = True) -> None:
        """Bring all up. Without `runners`, tasks are scripted no more but run for real."""
        await self.store.migrate()
        self._stack.push_async_callback(self.store.close)
        tokens = self.folder / "tokens.json"
        made: dict[str, Any] = {"entropy": os.urandom(38), "namespaces": ("*",), "now": self.clock.wall()}
        token, _ = create_token(tokens, scope=Scope.WORKER, **made)
        for number in range(2):
            await self._add_servicer(f"v{number}", tokens)
        broker = await self.broker("c0")
        herald = Herald(broker=broker, clock=self.clock, origin="c0")
        await broker.subscribe(NOTICES, herald.hear)
        await herald.start()
        self._stack.push_async_callback(herald.stop)
        self.scheduler = Scheduler(
            shard="s0",
            owner="c0",
            store=self.store,
            broker=broker,
            clock=self.clock,
            telemetry=Telemetry(),
            dice=lambda: 0.5,
            settings=SchedulerSettings(),
            committed=herald.committed,
        )
        await self.scheduler.start()
        self._stack.push_async_callback(self.scheduler.stop)
        self.http = CountingHttp(self.urls, token=token, clock=self.clock)
        await self._add_worker({"function": self.script, "command": self.script} if runners else None)
        await eventually(lambda: self.worker.attempts.shards["s0"].trusted_until)

    async def _add_worker(self, runners: dict[str, Runner] | None) -> None:
        self.worker = Worker(
            id=WorkerId("w-1"),
            broker=self._fallback(await self.broker("w-1")),
            blobs=self.blobs,
            clock=self.clock,
            shards=await self.http.shards(WorkerId("w-1"), timeout=10 * SECOND),
            functions=FunctionRegistry("any"),
            settings=WorkerSettings(scratch=str(self.folder), slots=64, functions_in="threads"),
            runners=runners,
        )
        self.script.sink = self.worker.attempts
        await self.worker.start()
        self._stack.push_async_callback(self.worker.stop)

    def _fallback(self, primary: NatsBroker) -> FallbackBroker:
        broker = FallbackBroker(primary, self.http, clock=self.clock)
        self._stack.push_async_callback(broker.close)
        return broker

    async def _add_servicer(self, name: str, tokens: Path) -> None:
        telemetry = Telemetry()
        servicer = Servicer(
            name=name,
            store=self.store,
            broker=await self.broker(name),
            blobs=self.blobs,
            clock=self.clock,
            entropy=secrets.token_bytes,
            dice=lambda: 0.5,
            telemetry=telemetry,
        )
        await servicer.start()
        self._stack.push_async_callback(servicer.stop)
        self.servicers.append(servicer)
        access = Access(TokenFile(tokens, monotonic=self.clock.monotonic), clock=self.clock)
        app = create_app(servicer, access=access, telemetry=telemetry, settings=HttpSettings())
        self.urls.append(await self._stack.enter_async_context(_served(app, self.clock)))

    async def close(self) -> None:
        """End all, the last that came up first."""
        await self._stack.aclose()

    async def create(self, schedule: str, at: int = 0, **fields: Any) -> JobView:
        """A job by one of the servicers."""
        body = {"task": {"kind": "function", "name": "m:f"}, "schedule": schedule, **fields}
        return (await self.servicers[at].create_job(decode(msgspec.json.encode(body), JobSpec)))[0]

    async def runs(self, job: JobView) -> list[Run]:
        """The job's runs, oldest first."""
        query = RunQuery(job_id=JobId(job.id), oldest_first=True, limit=1000)
        return list((await self.store.page_runs(query)).items)

    async def words(self, job: JobView) -> list[str]:
        """Their states."""
        return [run.state.word for run in await self.runs(job)]

    async def come_to(self, job: JobView, *words: str) -> None:
        """Returns once the job's runs are in these states."""
        seen: list[str] = []
        end = self.clock.monotonic() + 30 * SECOND
        while (seen := await self.words(job)) != list(words):
            assert self.clock.monotonic() < end, f"{seen} instead of {words}: {await self.runs(job)}"
            await self.clock.sleep(20_000)

    async def cut(self) -> None:
        """Kill the broker, and see that everybody knows."""
        for member in self.nats.members:
            member.kill()
        await eventually(lambda: not any(broker.connected for broker in self.brokers.values()))

    async def mend(self) -> None:
        """Start the broker again, and see that everybody is back."""
        await self.nats.start()
        await eventually(lambda: all(broker.connected for broker in self.brokers.values()))


@contextlib.asynccontextmanager
async def _served(app: Any, clock: SystemClock) -> AsyncIterator[str]:
    config = uvicorn.Config(app, port=0, http="httptools", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    import asyncio

    serving = asyncio.create_task(server._serve())
    while not server.started:
        assert not serving.done(), serving.exception()
        await clock.sleep(1_000)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving
