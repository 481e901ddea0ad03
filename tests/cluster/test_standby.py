"""A shard and its standby: what was acknowledged is there, whichever of the two leads."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from duly.adapters.system_clock import SystemClock
from duly.cluster.home import Identity
from duly.cluster.postgres_server import PostgresServer, free_ports
from duly.cluster.shard import Shard
from duly.core.errors import Conflict
from duly.core.instants import MILLISECOND, SECOND

CLOCK = SystemClock()
pytestmark = pytest.mark.timeout(120)


@contextlib.asynccontextmanager
async def led(folder: Path, identity: Identity, servers: int = 2) -> AsyncIterator[Shard]:
    """The shard over a directory."""
    names = ("s0", "s0b")[:servers]
    ports = free_ports(servers)
    made = [
        PostgresServer(
            folder / name, port=port, password="p'w", log=folder / f"{name}.log", options=("shared_buffers=16MB",)
        )
        for name, port in zip(names, ports, strict=True)
    ]
    shard = Shard("s0", made, identity, lambda: None, clock=CLOCK)
    try:
        await shard.start(60 * SECOND)
        yield shard
    finally:
        await shard.stop()


async def reaches(look: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit bounds it."""
    while not look():
        await CLOCK.sleep(20 * MILLISECOND)


async def write(shard: Shard, number: int) -> None:
    """A row, acknowledged; tried again while nobody leads."""
    while True:
        try:
            connection = await asyncpg.connect(shard.url, timeout=5)
            try:
                await connection.execute("create table if not exists kept (number int primary key)")
                await connection.execute("insert into kept values ($1) on conflict do nothing", number)
                return
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            await CLOCK.sleep(50 * MILLISECOND)


async def kept(shard: Shard) -> list[int]:
    """The rows."""
    connection = await asyncpg.connect(shard.url, timeout=5)
    try:
        return [row[0] for row in await connection.fetch("select number from kept order by number")]
    finally:
        connection.terminate()


async def test_a_standby_leads_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    """When asked to, and by itself when its primary does not come back; commits do not wait for one that is gone."""
    identity = Identity(shards=["s0"], password="p'w", nats_password="", key="")
    async with led(tmp_path, identity) as shard:
        await write(shard, 1)
        await reaches(lambda: shard.in_step)
        await write(shard, 2)

        await shard.promote()
        assert (shard.leader, shard.in_step, identity.leading) == ("s0b", False, {"s0": "s0b"})
        await write(shard, 3)
        assert await kept(shard) == [1, 2, 3]
        with pytest.raises(Conflict):
            await shard.promote()
        await reaches(lambda: shard.in_step)

        await shard.members["s0"].stop()
        await write(shard, 4)
        assert not shard.in_step
        shard.members["s0"].start()
        await reaches(lambda: shard.in_step)
        await write(shard, 5)

        (tmp_path / "s0b" / "data" / "global" / "pg_control").unlink()
        await shard.members["s0b"].kill()
        await reaches(lambda: shard.leader == "s0")
        await write(shard, 6)
        assert await kept(shard) == [1, 2, 3, 4, 5, 6]
        await reaches(lambda: shard.in_step)
    async with led(tmp_path, identity) as shard:
        assert shard.leader == "s0"
        await write(shard, 7)
        await reaches(lambda: shard.in_step)
        assert len(await kept(shard)) == 7


async def test_without_a_standby_nothing_can_be_promoted(tmp_path: Path) -> None:
    """And a directory that had one is led as it was left."""
    identity = Identity(shards=["s0"], password="p'w", nats_password="", key="")
    async with led(tmp_path, identity, servers=1) as shard:
        await write(shard, 1)
        with pytest.raises(Conflict, match="no standby"):
            await shard.promote()
