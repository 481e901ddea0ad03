"""Tasks that last and end as the seed says: the same for a given attempt, however the world got there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from random import Random  # noqa: TID251 - all from the seed
from typing import Any

import msgspec

from duly.core.model import Failure, RunKey
from duly.tasks.attempt import Held, Sink
from simulation.loop import SECOND, Life, NodeClock, VirtualLoop
from simulation.referee import Referee


class Tempers(msgspec.Struct, kw_only=True):
    """How tasks behave: shares of those that fail, hang, crash their process or their worker, or are slow."""

    fail: float = 0.0
    hang: float = 0.0
    crash: float = 0.0  # the child process dies
    kill: float = 0.0  # it takes its worker down
    slow: float = 0.0
    refuse: float = 0.0  # there is no slot, so it is given back


class Script:
    """A runner, in the place of the real ones."""

    def __init__(
        self,
        *,
        life: Life,
        loop: VirtualLoop,
        clock: NodeClock,
        shard_clock: Callable[[str], NodeClock],
        referee: Referee,
        tempers: Callable[[], Tempers],
        kill: Callable[[Life], None],
        over: Callable[[RunKey], None],
        seed: str,
    ) -> None:
        self.sink: Sink | None = None
        self._life = life
        self._loop = loop
        self._clock = clock
        self._shard_clock = shard_clock
        self._referee = referee
        self._tempers = tempers
        self._kill = kill
        self._over = over
        self._seed = seed
        self._tasks: dict[Held, asyncio.Task[None]] = {}
        self._staged: dict[Held, tuple[int, int]] = {}
        self.doubt: Callable[[str], int] = lambda shard: 0

    async def start(self) -> None:
        """Nothing to get ready."""

    def stage(self, batch: Sequence[Held]) -> None:
        for held in batch:
            self._staged[held] = (self._loop.micros, self.doubt(held.shard))
            self._tasks[held] = asyncio.get_running_loop().create_task(self._run(held))

    async def _run(self, held: Held) -> None:
        assert self.sink is not None
        text = f"{self._seed}/{held.key}/{held.attempt}"
        dice = Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
        await self._clock.sleep(held.due - self._clock.monotonic())
        tempers = self._tempers()
        if dice.random() < tempers.refuse:
            self._forget(held)
            self.sink.given_back(held, "no_capacity")
            return
        held.started = self._clock.monotonic()
        wall = self._shard_clock(held.shard).wall()
        who = held.run.worker
        self._referee.began(held.shard, who, held.run, held.job, wall, self._loop.micros, *self._staged[held])
        self._referee.going[held.key, held.attempt] = self._life
        self.sink.started(held, held.started)
        fate = dice.random()
        lasts = dice.randrange(15 * SECOND) if dice.random() < tempers.slow else dice.randrange(SECOND // 5)
        if (fate := fate - tempers.hang) < 0:
            lasts = 3600 * SECOND
        await self._clock.sleep(lasts)
        if fate >= 0 and (fate := fate - tempers.kill) < 0:
            self._kill(self._life)
            return
        now = self._clock.monotonic()
        self._forget(held)
        self._over(held.key)
        if fate >= 0 and (fate := fate - tempers.fail) < 0:
            self._referee.finished(held.run, None)
            failure = Failure(kind="exception", message="as the seed says")
            self.sink.failed(held, now, failure, started=held.started)
        elif fate >= 0 and (fate := fate - tempers.crash) < 0:
            self._referee.finished(held.run, None)
            failure = Failure(kind="signal", message="as the seed says")
            self.sink.failed(held, now, failure, started=held.started, crashed=True)
        else:
            token = msgspec.json.encode(f"{held.run.id}/{held.attempt}/{held.run.worker}")
            self._referee.finished(held.run, token)
            self.sink.succeeded(held, held.started, now, token)

    def _forget(self, held: Held) -> None:
        self._tasks.pop(held, None)
        self._staged.pop(held, None)

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        assert self.sink is not None
        task = self._tasks.get(held)
        if task is None or (unless_started and held.started):
            return
        self._forget(held)
        task.cancel()
        if held.started:
            self._referee.finished(held.run, None)
            failure = Failure(kind="signal", message="killed")
            self.sink.failed(held, self._clock.monotonic(), failure, started=held.started)
        else:
            self.sink.withdrawn(held)

    def log_path(self, held: Held, stream: str) -> str | None:
        return None

    def occupied(self) -> int:
        return sum(1 for held in self._tasks if held.started)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


__all__ = ["Any", "Script", "Tempers"]
