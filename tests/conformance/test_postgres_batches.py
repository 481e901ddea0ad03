"""Calls that wait for one another become one statement, and each keeps its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from conformance.postgres import DatabaseClock, databases
from conformance.samples import T0, dispatch, job, run
from duly.adapters import postgres_batches
from duly.adapters.postgres_batches import IN_FLIGHT, Batches
from duly.adapters.postgres_pool import Pool
from duly.adapters.postgres_store import PostgresStore
from duly.core.errors import Conflict, Fenced, InvalidInput, OutcomeUnknown, Overloaded
from duly.core.model import JobId


class Shard:
    """Carries out what it is given when it is let to, and answers each item with itself."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.taken: list[list[int]] = []
        self.fails: dict[int, Exception] = {}
        self.batches: Batches[str, int, int] = Batches(self.carry_out, most=10)

    async def carry_out(self, kind: str, items: Sequence[int]) -> list[int]:
        self.taken.append(list(items))
        await self.gate.wait()
        for item in items:
            if item in self.fails:
                raise self.fails[item]
        return list(items)

    def ask(self, *items: int, kind: str = "a") -> asyncio.Future[list[int]]:
        """A call, under way."""
        return asyncio.ensure_future(self.batches.submit(kind, items))

    async def busy(self) -> list[asyncio.Future[list[int]]]:
        """As many lone calls as there may be at once, all of them waiting."""
        calls = [self.ask(-i) for i in range(IN_FLIGHT)]
        await asyncio.wait(calls, timeout=0)
        self.taken.clear()
        return calls


@pytest.fixture
def shard() -> Shard:
    """One that nobody has asked yet."""
    return Shard()


async def test_a_lone_call_waits_for_nobody(shard: Shard) -> None:
    """It is on its way at once."""
    call = shard.ask(1, 2)
    await asyncio.wait([call], timeout=0)
    assert shard.taken == [[1, 2]]
    shard.gate.set()
    assert await call == [1, 2]


async def test_calls_that_wait_are_put_together(shard: Shard) -> None:
    """In their order, up to the most; each gets its own answers. One may be larger if it is alone."""
    before = await shard.busy()
    calls = [shard.ask(*range(10 * i, 10 * i + n)) for i, n in enumerate((4, 4, 4, 30, 2), 1)]
    await asyncio.wait(calls, timeout=0)
    assert shard.taken == []
    shard.gate.set()
    assert [len(answers) for answers in await asyncio.gather(*calls)] == [4, 4, 4, 30, 2]
    assert await asyncio.gather(*before) == [[-i] for i in range(IN_FLIGHT)]
    assert sorted(len(items) for items in shard.taken) == [4, 10, 30]


async def test_only_calls_of_one_kind_go_together(shard: Shard) -> None:
    """Those of the other wait for their turn, which they do not lose."""
    await shard.busy()
    calls = [shard.ask(i, kind="ab"[i % 2]) for i in range(8)]
    await asyncio.wait(calls, timeout=0)
    shard.gate.set()
    assert await asyncio.gather(*calls) == [[i] for i in range(8)]
    assert sorted(shard.taken) == [[0, 2, 4, 6], [1, 3, 5, 7]]


async def test_a_call_that_is_refused_does_not_spoil_the_others(shard: Shard) -> None:
    """They are carried out again, each by itself."""
    await shard.busy()
    shard.fails[2] = Conflict("not this one")
    calls = [shard.ask(i) for i in (1, 2, 3)]
    await asyncio.wait(calls, timeout=0)
    shard.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert (answers[0], answers[2]) == ([1], [3])
    assert isinstance(answers[1], Conflict)
    assert shard.taken == [[1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize("problem", [OutcomeUnknown("?"), Fenced("gone")])
async def test_what_is_true_of_one_is_true_of_all(shard: Shard, problem: Exception) -> None:
    """An unknown outcome is nobody's alone, and must not be tried again here; nor is a fence."""
    await shard.busy()
    shard.fails[2] = problem
    calls = [shard.ask(i) for i in (1, 2, 3)]
    await asyncio.wait(calls, timeout=0)
    shard.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers == [problem] * 3
    assert shard.taken == [[1, 2, 3]]


async def test_more_than_may_wait_is_overloaded(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until some have been carried out."""
    monkeypatch.setattr(postgres_batches, "MAX_QUEUED", 5)
    await shard.busy()
    waiting = shard.ask(1, 2, 3)
    await asyncio.wait([waiting], timeout=0)
    with pytest.raises(Overloaded):
        await shard.batches.submit("a", [4, 5, 6])
    shard.gate.set()
    assert await waiting == [1, 2, 3]
    assert await shard.batches.submit("a", [4, 5, 6]) == [4, 5, 6]


async def test_a_caller_that_gives_up_while_it_waits_is_left_out(shard: Shard) -> None:
    """The others are not kept."""
    await shard.busy()
    gone, call = shard.ask(1), shard.ask(2)
    await asyncio.wait([gone, call], timeout=0)
    gone.cancel()
    shard.gate.set()
    assert await call == [2]
    assert shard.taken == [[2]]


async def test_drain_waits_for_all_that_was_submitted(shard: Shard) -> None:
    """Queued ones, too."""
    calls = [*await shard.busy(), shard.ask(1), shard.ask(2)]
    await asyncio.wait(calls, timeout=0)
    draining = asyncio.ensure_future(shard.batches.drain())
    await asyncio.wait([draining], timeout=0)
    assert not draining.done()
    shard.gate.set()
    await draining
    assert all(call.done() for call in calls)


# -- over the database --------------------------------------------------------------------------------------


async def test_many_small_calls_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred creations and as many dispatches take a few statements; a bad one among them is its caller's alone."""
    write, asked = Pool.write, list[str]()

    async def noted(self: Pool, sql: str, *args: Any, **options: Any) -> list[Any]:
        asked.append(sql)
        return await write(self, sql, *args, **options)

    monkeypatch.setattr(Pool, "write", noted)
    clock = DatabaseClock(databases().clock_file, T0)
    store = PostgresStore(databases().shard("s0", T0), shard="s0", clock=clock)
    await store.now()
    names = [f"j{i:02}" for i in range(100)]
    assert await asyncio.gather(*(store.create([(job(name), [run(name)])]) for name in names)) == [[None]] * 100
    assert len(asked) <= 2 * IN_FLIGHT
    asked.clear()
    assert await asyncio.gather(*(store.apply([dispatch(run(name))]) for name in names)) == [[]] * 100
    assert len(asked) <= 2 * IN_FLIGHT
    again = await asyncio.gather(
        *(store.create([(job(name, name="\0" if name == "j50" else ""), []), (job(f"k{name}"), [])]) for name in names),
        return_exceptions=True,
    )
    assert isinstance(again[50], InvalidInput)
    assert [answer for i, answer in enumerate(again) if i != 50] == [[job(n), None] for n in names if n != "j50"]
    term = await store.hold("s0", "me", 10**9)
    fenced = await asyncio.gather(
        *(store.apply([dispatch(run(name))], shard="s0", fence=term.fence + i % 2) for i, name in enumerate(names)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in fenced] == [list, Fenced] * 50
    await store.close()


async def test_close_carries_out_what_is_queued() -> None:
    """Every caller is answered."""
    clock = DatabaseClock(databases().clock_file, T0)
    store = PostgresStore(databases().shard("s0", T0), shard="s0", clock=clock)
    await store.now()
    calls = [asyncio.ensure_future(store.create([(job(f"j{i}"), [])])) for i in range(50)]
    await asyncio.wait(calls, timeout=0)
    await store.close()
    assert await asyncio.gather(*calls) == [[None]] * 50
    again = PostgresStore(databases().url("shard-s0"), shard="s0", clock=clock)
    assert all(await again.get([JobId(f"j{i}") for i in range(50)]))
    await again.close()
