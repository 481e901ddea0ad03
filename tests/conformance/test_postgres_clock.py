"""The clock of a PostgreSQL shard, as several nodes tell it, and lease time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conformance.postgres import DatabaseClock, databases
from conformance.samples import SECOND, T0, W1, dispatch, job, run, worker
from duly.adapters import postgres_clock
from duly.adapters.postgres_pool import Pool
from duly.adapters.postgres_store import PostgresStore
from duly.core.errors import Unavailable
from duly.core.instants import HOUR

TTL = 5 * SECOND


@pytest.fixture
def url() -> str:
    """An empty shard."""
    return databases().shard("s0", T0)


@pytest.fixture
def clock() -> DatabaseClock:
    """The server's, and that of every node."""
    return DatabaseClock(databases().clock_file, T0)


@pytest.fixture
async def store(url: str, clock: DatabaseClock) -> AsyncIterator[PostgresStore]:
    """One node's."""
    made = PostgresStore(url, shard="s0", clock=clock)
    yield made
    await made.close()


@pytest.fixture
async def other(url: str, clock: DatabaseClock) -> AsyncIterator[PostgresStore]:
    """Another's."""
    made = PostgresStore(url, shard="s0", clock=clock)
    yield made
    await made.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that go to the server."""
    statement = Pool._statement
    seen: list[str] = []

    async def noted(self: Pool, sql: str, *args: Any, **options: Any) -> list[Any]:
        seen.append(sql)
        return await statement(self, sql, *args, **options)

    monkeypatch.setattr(Pool, "_statement", noted)
    return seen


def shift() -> tuple[int, int]:
    """(generation, shift) as they are stored."""
    [(generation, by)] = databases().connection("s0").execute("select generation, shift from duly.lease_clock")
    return int(str(generation)), int(str(by))


async def test_now_costs_no_round_trip_within_half_a_second(
    store: PostgresStore, clock: DatabaseClock, asked: list[str]
) -> None:
    """The scheduler asks it in every turn of its loop."""
    assert await store.now() == T0
    asked.clear()
    for passed in range(1, 100):
        await clock.advance(5_000)
        assert await store.now() == T0 + passed * 5_000
    assert asked == []


async def test_now_is_measured_again_in_the_background_before_it_is_old(
    store: PostgresStore, clock: DatabaseClock, asked: list[str]
) -> None:
    """Nobody waits for it; once, however many ask. After a second they do."""
    await store.now()
    await clock.advance(SECOND // 2)
    asked.clear()
    for _ in range(10):
        assert await store.now() == T0 + SECOND // 2
    while not asked:
        await clock.sleep(0)
    await store._clock.close()
    assert asked == [postgres_clock.SQL["clock"]]
    await clock.advance(SECOND)
    clock.skew += HOUR
    assert await store.now() == T0 + SECOND * 3 // 2 + HOUR


async def test_now_of_a_shard_that_is_gone_is_unavailable_within_a_second(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not told from memory for longer."""
    await store.now()

    async def gone(*_: Any, **__: Any) -> list[Any]:
        raise Unavailable("gone")

    monkeypatch.setattr(Pool, "_statement", gone)
    await clock.advance(SECOND - 1)
    assert await store.now() == T0 + SECOND - 1
    await store._clock.close()
    await clock.advance(1)
    with pytest.raises(Unavailable):
        await store.now()


class SlowLink:
    """A link on which time passes on the way there and on the way back."""

    def __init__(self, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = self.back = 0
        statement = Pool._statement

        async def slow(pool: Pool, sql: str, args: Any, **options: Any) -> list[Any]:
            values = args()  # made before the way there
            await clock.advance(self.there)
            rows = await statement(pool, sql, lambda: values, **options)
            await clock.advance(self.back)
            return rows

        monkeypatch.setattr(Pool, "_statement", slow)


async def test_the_shortest_round_trip_counts(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer does not make a good estimate worse: the bounds of both are intersected."""
    link = SlowLink(clock, monkeypatch)
    link.there = link.back = 100
    assert await store.now() == clock.wall()
    link.there, link.back = 40_000, 0
    await clock.advance(2 * SECOND)
    assert abs(await store.now() - clock.wall()) <= 1_300  # 200 µs of round trip, and the drift of two seconds


async def test_the_time_that_a_connection_takes_is_not_counted(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is waiting for one: the question is dated when it is asked."""
    acquire = Pool._acquire

    async def slow(pool: Pool) -> Any:
        await clock.advance(50_000)
        return await acquire(pool)

    monkeypatch.setattr(Pool, "_acquire", slow)
    assert await store.now() == clock.wall()
    assert (await store.beat("s0", worker(W1), TTL)).beat_at == clock.wall()


async def test_a_slow_round_trip_is_not_taken_for_a_step(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is repeated with more slack; no lease moves."""
    link = SlowLink(clock, monkeypatch)
    link.there = 300_000
    for _ in range(5):
        written = await store.beat("s0", worker(W1), TTL)
        assert written.lease_until - written.beat_at == TTL
    assert shift() == (0, 0)


@pytest.mark.parametrize(("there", "back"), [(800_000, 0), (0, 800_000)])
async def test_a_first_look_over_a_slow_link_is_no_reason_to_see_a_step_later(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch, there: int, back: int
) -> None:
    """It tells little of the clock; what later looks tell better is not taken for a step."""
    link = SlowLink(clock, monkeypatch)
    link.there, link.back = there, back
    await store.now()
    link.there = link.back = 0
    for _ in range(3):
        assert (await store.hold("s0", "me", TTL)).fence == 1
        await clock.advance(SECOND)
        await store.now()
    assert shift() == (0, 0)
    clock.skew += HOUR
    assert (await store.hold("s0", "other", TTL)).owner == "me"
    [(_, moved)] = [shift()]
    assert abs(moved - HOUR) < 1_000


async def test_round_trips_that_are_too_slow_to_judge_by_are_unavailable(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded number of tries, and nothing is written."""
    await store.now()
    link = SlowLink(clock, monkeypatch)
    link.there = postgres_clock.MAX_SLACK + SECOND
    with pytest.raises(Unavailable, match="clock"):
        await store.hold("s0", "me", TTL)
    assert databases().connection("s0").execute("select count(*) from duly.term").fetchone() == (0,)


async def test_a_step_that_many_see_is_taken_up_once(
    store: PostgresStore, other: PostgresStore, clock: DatabaseClock
) -> None:
    """By whoever asks first; the others follow."""
    for node in (store, other):
        await node.hold("s0", "first", TTL)
    clock.skew += HOUR
    terms = await asyncio.gather(*((store, other)[i % 2].hold("s0", f"x{i}", TTL) for i in range(10)))
    assert {(term.owner, term.fence, term.expires_at) for term in terms} == {("first", 1, T0 + HOUR + TTL)}
    assert shift() == (1, HOUR)
    clock.skew -= 2 * HOUR
    assert (await other.hold("s0", "x", TTL)).owner == "first"
    assert shift() == (2, -HOUR)


async def test_a_node_that_comes_later_takes_what_it_finds(
    store: PostgresStore, clock: DatabaseClock, url: str
) -> None:
    """Lease time goes on from where the others have brought it."""
    await store.hold("s0", "first", TTL)
    clock.skew += HOUR
    await store.hold("s0", "first", TTL)
    late = PostgresStore(url, shard="s0", clock=clock)
    assert (await late.hold("s0", "late", TTL)).owner == "first"
    await clock.advance(TTL)
    assert (await late.hold("s0", "late", TTL)).owner == "late"
    await late.close()


@pytest.mark.parametrize("back", [2 * SECOND, HOUR])
async def test_a_heartbeat_from_the_future_is_taken_for_one_of_now(
    store: PostgresStore, clock: DatabaseClock, url: str, back: int
) -> None:
    """The clock went back while no node was looking: no lease is shorter for it, and each ends within its ttl."""
    await store.create([(job("a"), [run("a")])])
    await store.apply([dispatch(run("a"))])
    await store.beat("s0", worker(W1), TTL)
    await store.hold("s0", "first", TTL)
    await store.close()
    clock.skew -= back
    again = PostgresStore(url, shard="s0", clock=clock)
    await clock.advance(TTL - 1)
    assert await again.expired("s0", 10) == []
    assert (await again.hold("s0", "second", TTL)).owner == "first"
    await clock.advance(TTL + 1)
    assert len(await again.expired("s0", 10)) == 1
    assert (await again.hold("s0", "second", TTL)).owner == "second"
    await again.close()


async def test_clocks_that_drift_apart_are_followed(
    store: PostgresStore, clock: DatabaseClock, asked: list[str]
) -> None:
    """Slower than 500 µs a second nothing is a step, however far they get."""
    await store.hold("s0", "first", TTL)
    for _ in range(400):
        await clock.advance(SECOND)
        clock.skew += 400
        assert (await store.hold("s0", "first", TTL)).fence == 1
        assert abs(await store.now() - clock.wall()) <= 500
    assert shift() == (0, 0)


def test_the_servers_clock_is_the_time_in_microseconds() -> None:
    """Without the test's clock."""
    with databases().fresh() as db:
        [(difference,)] = db.execute("select duly.clock() - (extract(epoch from clock_timestamp()) * 1e6)::bigint")
        assert -SECOND < int(str(difference)) <= 0
