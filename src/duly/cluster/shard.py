"""A shard's servers: one that takes writes and, if wanted, a standby that every acknowledged commit has reached.

    catching up ──streaming, then every commit waits for it──▶ in step ──primary does not come back──▶ it leads
         ▲                                                        │
         └──the standby is gone: first noted, then not waited for─┘          (the other is made anew, as its standby)

**In step** is written down before it is relied on and taken back before commits go on without the standby. So whenever
it says in step the standby has all that was acknowledged, and leading from there loses nothing; otherwise nobody but a
person may let it lead (decision 0020). The supervisor is the only one who decides, and it never starts a server as
the primary while the other one may run as that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from duly.cluster.home import Identity
from duly.cluster.postgres_server import DATABASE, PostgresServer
from duly.cluster.supervision import Supervised
from duly.core.errors import Conflict, DulyError, Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.ports import Clock

log = logging.getLogger("duly.cluster")

LOOK: Final = 200 * MILLISECOND
GONE_AFTER: Final = 2 * SECOND  # of a standby that is not heard of, while commits wait for it
LIVES: Final = 3  # of a primary that does not come up, before the standby leads
SETTLED: Final = SECOND  # after commits were told to wait, all of them do
STANDBY_WITHIN: Final = 60 * SECOND
ASK_WITHIN: Final = 2.0  # seconds


_REPLICA: Final = """
    select state, sync_state in ('sync', 'quorum'), coalesce(flush_lsn - '0/0'::pg_lsn, 0)::bigint,
        (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint
    from pg_stat_replication where application_name = $1
"""


class _Replica(NamedTuple):
    """A standby: what it is doing, whether commits wait for it, and how far it and the primary are."""

    state: str
    waits: bool
    flushed: int
    written: int


class Shard:
    """One shard of a cluster. `servers` are one or two; `keep` writes the identity down."""

    def __init__(
        self, name: str, servers: list[PostgresServer], identity: Identity, keep: Callable[[], None], *, clock: Clock
    ) -> None:
        self.name = name
        self.members = {
            server.folder.name: Supervised(server.folder.name, server.program, clock=clock) for server in servers
        }
        self._servers = {server.folder.name: server for server in servers}
        self._identity = identity
        self._keep = keep
        self._clock = clock
        self._watching: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._to_follow = len(servers) > 1  # the standby has yet to be started
        self._heard_at = 0  # when the primary last spoke of it
        self._waiting_since: int | None = None  # when commits were first seen to wait for it
        self._goal: int | None = None  # where it has to get to be in step

    @property
    def url(self) -> str:
        """Where the shard is, wherever it is led from."""
        ports = [server.port for server in self._servers.values()]
        if len(ports) == 1:
            return self._primary.url
        login, _, _ = self._primary.url.rpartition("@")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"{login}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    @property
    def leader(self) -> str:
        """The name of the server that takes writes."""
        leading = self._identity.leading.get(self.name, "")
        return leading if leading in self._servers else next(iter(self._servers))

    @property
    def in_step(self) -> bool:
        """The standby has all that was acknowledged."""
        return self.name in self._identity.in_step

    @property
    def _primary(self) -> PostgresServer:
        return self._servers[self.leader]

    @property
    def _standby(self) -> PostgresServer | None:
        return next((server for name, server in self._servers.items() if name != self.leader), None)

    # -- life -----------------------------------------------------------------------------------------------

    async def start(self, within: int) -> None:
        """Returns when it takes writes. The standby follows as soon as it can."""
        primary, standby = self._primary, self._standby
        await asyncio.to_thread(primary.make)
        if standby is None:
            self._note(in_step=False)
        primary.lead(synchronous=standby.folder.name if standby is not None and self.in_step else "")
        self.members[self.leader].start()
        if standby is not None:
            self._watching = asyncio.create_task(self._watch(), name=f"standby of {self.name}")
        await self.members[self.leader].ready(within)

    async def stop(self) -> None:
        """The primary first, so that the standby gets the last of what it has written."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        for name in sorted(self.members, key=lambda name: name != self.leader):
            await self.members[name].stop()

    async def promote(self) -> None:
        """Lead from the standby. Raises Conflict if there is none, or it may lack what was acknowledged."""
        if self._standby is None:
            raise Conflict(f"{self.name} has no standby; start the cluster with --standbys 1")
        if not self.in_step:
            raise Conflict(f"the standby of {self.name} is not in step: leading from there could lose jobs")
        async with self._changing:
            await self._hand_over()

    # -- the standby ----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        told = ""
        while True:
            try:
                async with self._changing:
                    await self._look()
            except (DulyError, OSError) as problem:
                if str(problem) != told:
                    log.warning("shard %s: %s; trying again", self.name, problem)
                told = str(problem)
            await self._clock.sleep(LOOK)

    async def _look(self) -> None:
        leading, standby = self.members[self.leader], self._standby
        assert standby is not None
        if leading.state == "pausing" and leading.stillborn >= LIVES and self.in_step:
            log.warning("shard %s: %s does not come back, leading from its standby", self.name, self.leader)
            await self._hand_over()
        elif leading.state != "ready":
            return
        elif self._to_follow:
            await self._begin_to_follow(standby)
        else:
            await self._keep_in_step(standby)

    async def _keep_in_step(self, standby: PostgresServer) -> None:
        now = self._clock.monotonic()
        replica = await self._replica(standby)
        if replica is not None and replica.state == "streaming":
            self._heard_at = now
        elif now - self._heard_at > GONE_AFTER:
            if self.in_step:
                log.warning("shard %s: its standby is gone, going on without", self.name)
            self._note(in_step=False)
            self._wait_for("")
            return
        if replica is None or self.in_step:
            return
        if replica.waits:
            self._waiting_since = self._waiting_since or now
            if self._goal is not None and replica.flushed >= self._goal:
                self._note(in_step=True)
                log.info("shard %s: its standby is in step", self.name)
            elif now - self._waiting_since > SETTLED:  # no commit is under way that began before they waited
                self._goal = self._goal or replica.written
        else:
            self._wait_for(standby.folder.name)

    async def _begin_to_follow(self, standby: PostgresServer) -> None:
        """From where it was, if it was in step; else from a new copy, which may take long."""
        if not (standby.made and self.in_step):
            self._note(in_step=False)
            await asyncio.to_thread(standby.make_standby, self._primary)
        standby.follow(self._primary)
        self.members[standby.folder.name].start()
        self._heard_at = self._clock.monotonic()
        self._to_follow = False

    def _wait_for(self, standby: str) -> None:
        """Let commits wait for the standby, or for none."""
        self._waiting_since = self._goal = None
        self._primary.lead(synchronous=standby)
        pid = self.members[self.leader].pid
        if pid is not None:
            self._primary.reload(pid)

    async def _replica(self, standby: PostgresServer) -> _Replica | None:
        """The standby as the primary sees it; None if it does not."""
        row = await self._ask(_REPLICA, standby.folder.name)
        return None if row is None else _Replica(*row)

    async def _ask(self, sql: str, *args: object) -> Any:
        import asyncpg

        try:
            connection = await asyncpg.connect(self._primary.url, timeout=ASK_WITHIN, command_timeout=ASK_WITHIN)
            try:
                return await connection.fetchrow(sql, *args)
            finally:
                await connection.close(timeout=ASK_WITHIN)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as problem:
            raise Unavailable(f"the primary does not say how its standby does: {problem}") from problem

    async def _hand_over(self) -> None:
        former, standby = self.leader, self._standby
        assert standby is not None
        await self.members[former].stop()
        self._identity.leading[self.name] = standby.folder.name
        self._note(in_step=False)  # of the one that followed until now; written with who leads
        following = self.members[standby.folder.name]
        if following.pid is not None:
            standby.promote(following.pid)
        deadline = self._clock.monotonic() + STANDBY_WITHIN
        while not standby.is_writable(following.pid or 0):
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"{standby.folder.name} was told to lead, and does not: {following.last_words()}")
            await self._clock.sleep(LOOK // 4)
        standby.lead()
        self._to_follow = True
        log.warning("shard %s: %s leads", self.name, standby.folder.name)

    def _note(self, *, in_step: bool) -> None:
        """Written down before anything is done that relies on it."""
        before = set(self._identity.in_step)
        self._identity.in_step = sorted(before | {self.name} if in_step else before - {self.name})
        self._keep()
