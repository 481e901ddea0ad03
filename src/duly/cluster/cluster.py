"""A cluster on one machine: started in order, kept going, stopped in order.

    start   PostgreSQL of each shard, NATS ─▶ migrate ─▶ servicers, schedulers, workers ─▶ /readyz
    stop    workers (they hand back what runs) ─▶ schedulers (they hand over) ─▶ servicers ─▶ NATS ─▶ PostgreSQL

One URL: a listening socket that this process holds and every servicer accepts from, so that a connection goes to
whichever lives; besides, each servicer has an address of its own (decision 0019).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from duly.boot.roles import migrate
from duly.boot.serving import listen, url_of
from duly.cluster.control import Told, controlled
from duly.cluster.home import Home, Identity
from duly.cluster.nats_server import NatsServers
from duly.cluster.postgres_server import PostgresServer, free_ports
from duly.cluster.shard import Shard
from duly.cluster.supervision import Program, Supervised, turn_over
from duly.core.errors import DulyError, InvalidInput, NotFound, TimedOut
from duly.core.instants import MILLISECOND, SECOND
from duly.faces.exchange import Exchange
from duly.ports import Clock
from duly.settings import PREFIX, Settings

log = logging.getLogger("duly.cluster")

READY_WITHIN: Final = 60 * SECOND
LOGS_EVERY: Final = 30 * SECOND  # between two looks at the size of the logs
POSTGRES_OPTIONS: Final = ("shared_buffers=64MB", "max_connections=200", "wal_keep_size=512MB")
BACKLOG: Final = 1_024


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each."""

    shards: int = 3
    servicers: int = 2
    schedulers: int = 2
    workers: int = 4
    nats: int = 1
    standbys: int = 0


class Cluster:
    """The processes of a cluster, by name: s0 …, n0 …, servicer-0 …, scheduler-0 …, worker-0 …"""

    def __init__(self, plan: Plan, settings: Settings, home: Home, *, clock: Clock) -> None:
        """`settings` are those of its roles; addresses and secrets are put into them here."""
        self.plan = plan
        self.home = home
        self.members: dict[str, Supervised] = {}
        self.url = ""
        self._settings = settings
        self._clock = clock
        self._identity: Identity = home.identity(plan.shards)
        self.shards: dict[str, Shard] = {}
        self._nats: list[str] = []
        self._stack = contextlib.AsyncExitStack()
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}

    # -- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when every shard has a scheduler and a worker. What had started is stopped again if that fails."""
        try:
            front = self._stack.enter_context(listen(self._settings.host, self._settings.port))
            front.listen(BACKLOG)
            self.url = url_of(front, self._settings.host)
            await _together([self._start_postgres(), self._start_nats()])
            settings = replace(
                self._settings,
                dir=str(self.home.directory),
                blobs=str(self.home.blobs),
                stores={shard.name: shard.url for shard in self.shards.values()},
                nats=self._nats,
                cluster_key=[self._identity.key],
                token=self.home.roles_token(self._identity, self._clock.wall()) or self._settings.token,
            )
            await migrate(settings)
            await self._start_roles(settings, front)
            await self._until_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends every process, those first that lean on others."""
        for kind in ("worker", "scheduler", "servicer", "n"):
            await asyncio.gather(*(member.stop() for name, member in self.members.items() if _kind(name) == kind))
        await asyncio.gather(*(shard.stop() for shard in self.shards.values()))
        await self._stack.aclose()

    async def watch(self, asked: asyncio.Event, started: Callable[[], None]) -> None:
        """Take requests, from when `started` is called, and keep the logs small, until an end is asked for."""
        async with controlled(self.home.control, self.carry_out):
            started()
            while not await self._clock.wait(asked, LOGS_EVERY):
                for path in self.home.logs.glob("*.log"):
                    turn_over(path)

    # -- servers --------------------------------------------------------------------------------------------

    async def _start_postgres(self) -> None:
        names = self._identity.shards
        ports = iter(free_ports(2 * len(names)))

        def server(name: str) -> PostgresServer:
            return PostgresServer(
                self.home.directory / "postgres" / name,
                port=next(ports),
                password=self._identity.password,
                log=self.home.logs / f"{name}.log",
                options=POSTGRES_OPTIONS,
            )

        for name in names:
            servers = [server(each) for each in (name, f"{name}b")[: 1 + self.plan.standbys]]
            shard = Shard(name, servers, self._identity, partial(self.home.keep, self._identity), clock=self._clock)
            self.shards[name] = shard
            self.members |= shard.members
        await _together([shard.start(READY_WITHIN) for shard in self.shards.values()])

    async def _start_nats(self) -> None:
        servers = NatsServers(
            self.home.directory / "nats", self.plan.nats, clock=self._clock, password=self._identity.nats_password
        )
        servers.choose_routes()

        def supervised(server: Any) -> Supervised:
            def program() -> Program:
                return Program(
                    argv=tuple(server.prepare()),
                    log=self.home.logs / f"{server.name}.log",
                    folder=server.folder,
                    orphaned=signal.SIGTERM,
                    ready=server.is_up,
                )

            return Supervised(server.name, program, clock=self._clock)

        await self._bring_up({server.name: supervised(server) for server in servers.members})
        self._nats = servers.urls

    # -- roles ----------------------------------------------------------------------------------------------

    async def _start_roles(self, settings: Settings, front: socket.socket) -> None:
        ports = free_ports(self.plan.servicers)
        own = [f"http://127.0.0.1:{port}" for port in ports]
        self.home.write_settings(replace(settings, server=",".join(own), port=0))
        roles: dict[str, Supervised] = {}
        for number, port in enumerate(ports):
            roles[f"servicer-{number}"] = self._role("servicer", number, "--port", str(port), listen=front.fileno())
        for number in range(self.plan.schedulers):
            roles[f"scheduler-{number}"] = self._role("scheduler", number, "--probe-port", "0")
        for number in range(self.plan.workers):
            roles[f"worker-{number}"] = self._role("worker", number, "--probe-port", "0")
        await self._bring_up(roles)

    def _role(self, kind: str, number: int, *options: str, listen: int | None = None) -> Supervised:
        name = f"{kind}-{number}"
        command = [sys.executable, "-m", "duly.cli", kind, "--config", str(self.home.settings_file), "--json"]
        program = Program(
            argv=(*command, "--name", name, *options),
            log=self.home.logs / f"{name}.log",
            folder=Path.cwd(),
            env=self._environment,
            grace=2 * self._settings.grace + 10 * SECOND,
            listen=listen,
        )
        return Supervised(name, lambda: program, clock=self._clock)

    async def _bring_up(self, members: dict[str, Supervised]) -> None:
        self.members |= members
        for member in members.values():
            member.start()
        await _together([member.ready(READY_WITHIN) for member in members.values()])

    async def _until_ready(self) -> None:
        exchange = Exchange(self.url, tries=1)
        deadline = self._clock.monotonic() + READY_WITHIN
        try:
            while True:
                try:
                    _, body = await exchange.send("GET", "/readyz")
                    missing = "; ".join(msgspec.json.decode(body)["missing"])
                except DulyError as error:
                    missing = str(error)
                if not missing:
                    return
                if self._clock.monotonic() > deadline:
                    raise TimedOut(f"the cluster is not ready: {missing}")
                await self._clock.sleep(20 * MILLISECOND)
        finally:
            await exchange.close()

    # -- requests -------------------------------------------------------------------------------------------

    @property
    def servicers(self) -> list[str]:
        """The servicers' own addresses."""
        return [str(member.told.get("url")) for name, member in self.members.items() if _kind(name) == "servicer"]

    def status(self) -> Told:
        """What runs."""
        return {
            "url": self.url,
            "pid": os.getpid(),
            "shards": [
                {
                    "name": shard.name,
                    "leader": shard.leader,
                    "standby": "in step" if shard.in_step else "behind" if len(shard.members) > 1 else "none",
                }
                for shard in self.shards.values()
            ],
            "members": [
                {
                    "name": name,
                    "state": member.state,
                    "pid": member.pid,
                    "restarts": member.restarts,
                    "url": member.told.get("url") if member.state == "ready" else None,
                }
                for name, member in self.members.items()
            ],
        }

    async def carry_out(self, asked: Told) -> Told:
        """One request of `control.py`; returns the status afterwards."""
        do, name = asked.get("do"), str(asked.get("name", ""))
        if do == "status":
            return self.status()
        if do == "promote":
            shard = self.shards.get(name)
            if shard is None:
                raise NotFound(f"there is no shard {name!r} here, only {', '.join(self.shards)}")
            await shard.promote()
            return self.status()
        member = self.members.get(name)
        if member is None:
            raise NotFound(f"there is no {name!r} here, only {', '.join(self.members)}")
        if do == "stop":
            await member.stop()
        elif do == "start":
            member.start()
            await member.ready(READY_WITHIN)
        elif do == "kill":
            await member.kill()
        else:
            raise InvalidInput.at("/do", f"{do!r} is none of status, stop, start, kill, promote")
        return self.status()


@contextlib.asynccontextmanager
async def running(
    plan: Plan, settings: Settings, directory: Path, *, clock: Clock, asked: asyncio.Event
) -> AsyncIterator[Cluster | None]:
    """A cluster over a directory, ready when the block begins and gone after it.

    None if `asked` is set before it is ready: then what had started is gone already.
    """
    home = Home(directory)
    with home.taken():
        cluster = Cluster(plan, settings, home, clock=clock)
        starting = asyncio.create_task(cluster.start(), name="start")
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            yield None
            return
        await starting
        try:
            yield cluster
        finally:
            await cluster.stop()


def _kind(name: str) -> str:
    return name.partition("-")[0].rstrip("0123456789")


async def _together(steps: Sequence[Coroutine[Any, Any, object]]) -> None:
    """All of them at once; if one fails the others are broken off, and its error is the one that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
