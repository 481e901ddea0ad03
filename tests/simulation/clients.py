"""Clients: they ask for this and that, one thing after the other, from any servicer that is up, until it is calm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec

from duly.core.contract import JobSpec
from duly.core.definition import decode
from duly.core.errors import DulyError, OutcomeUnknown, Unavailable
from duly.core.model import JobId, RunKey, RunState, run_id
from duly.roles.servicer import Servicer
from simulation.loop import SECOND, Life

if TYPE_CHECKING:
    from simulation.world import World

SPOILT: Final = 0.1
ONCE: Final = decode(b'{"task": {"kind": "function", "name": "m:f"}, "schedule": "in 10s", "timeout": "12s"}', JobSpec)
CALM_BEFORE: Final = 10 * SECOND  # a shard that has refused a servicer lately may be given up by it for so long
SCHEDULES: Final = ("every 10s", "every 15s", "every 1m", "after 8s", "after 20s", "in 10s", "in 1m", "now")


class Client:
    """One of them, with dice of its own."""

    def __init__(self, world: World, name: str, gap: int) -> None:
        """`gap`: mean µs between two things it asks for."""
        self._world = world
        self._referee = world.referee
        self._dice = world.random(f"client/{name}")
        self._gap = gap
        self.asked: Life | None = None  # the servicer that was asked last
        self.refusal: Exception | None = None  # what it said, if it refused

    async def run(self) -> None:
        """A few jobs first, then anything."""
        for _ in range(self._dice.randint(3, 6)):
            await self._create()
        while not self._world.calm:
            await self._world.clock.sleep(1 + int(self._dice.expovariate(1 / self._gap)))
            if not self._world.calm:
                await self._act()

    async def _ask(self, work: Callable[[Servicer], Coroutine[Any, Any, Any]]) -> Any:
        """Have a servicer do something; None if it refused, or if no answer came."""
        world = self._world
        up = [host for host in world.hosts if host.kind == "servicer" and host.up and host.roles]
        if not up:
            await world.clock.sleep(SECOND)
            return None
        host = self._dice.choice(up)
        assert host.life is not None
        self.asked, self.refusal = host.life, None
        answer: asyncio.Future[Any] = world.loop.create_future()
        world.loop.start(host.life, _serve(work(host.roles[0]), answer))
        try:
            async with asyncio.timeout(10):
                return await answer
        except (DulyError, TimeoutError) as error:
            self.refusal = error
            world.faults[f"clients told {type(error).__name__}"] += 1
            return None

    async def _create(self) -> None:
        dice = self._dice
        body: dict[str, Any] = {
            "task": {"kind": "function", "name": "m:f"},
            "schedule": dice.choice(SCHEDULES),
            "timeout": f"{dice.choice((3, 12))}s",
            "overlap": dice.choice(("skip", "queue", "allow", "cancel_running")),
            "misfire": dice.choice(("run_latest", "run_all", "skip")),
            "delivery": dice.choice(("at_least_once", "at_least_once", "at_most_once")),
            "max_lateness": f"{dice.choice((1, 3))}s",
            "priority": dice.randrange(10),
            "retry": {"max_attempts": dice.randint(1, 3), "base": "1s", "cap": "4s"},
            "catchup_window": dice.choice(("10s", "1m", "1h")),
        }
        if body["delivery"] == "at_most_once":
            del body["retry"]
        if dice.random() < 0.2:
            body["jitter"] = "2s"
        if dice.random() < 0.3:
            body["keep"] = {"runs": dice.choice((0, 1, 3)), "for": dice.choice(("1s", "1m", "1d"))}
        spec = decode(msgspec.json.encode(body), JobSpec)
        if dice.random() < 0.5:
            await self._create_once(spec, f"key-{dice.getrandbits(64):x}", tries=3)
        else:
            await self._create_somewhere(spec)

    async def create_keyed(self, key: str) -> None:
        """A job for which several ask by the same key."""
        await self._create_once(ONCE, key, tries=1)

    async def _create_once(self, spec: JobSpec, key: str, tries: int) -> None:
        for _ in range(tries):
            made = await self._ask(lambda servicer: servicer.create_job(spec, key=key))
            if made is not None:
                self._referee.acknowledged.add(JobId(made[0].id))
                return

    async def _create_somewhere(self, spec: JobSpec) -> None:
        """Without a key: one shard that answers is enough."""
        world = self._world
        begun = world.loop.micros
        made = await self._ask(lambda servicer: servicer.create_job(spec))
        if made is not None:
            self._referee.acknowledged.add(JobId(made[0].id))
        elif isinstance(self.refusal, Unavailable) and not isinstance(self.refusal, OutcomeUnknown):
            spared = world.network.spared(self.asked, since=begun - CALM_BEFORE)
            self._referee.refused_a_creation(self.asked, spared, begun - CALM_BEFORE)

    async def _act(self) -> None:
        dice, referee = self._dice, self._referee
        jobs = [job_id for job_id, job in referee.jobs.items() if job.state != "deleted"]
        what = dice.choices(
            ("create", "patch", "reschedule", "pause", "resume", "delete", "trigger", "cancel", "retry"),
            (3, 2, 2, 2, 4, 1, 3, 5, 1),
        )[0]
        if what == "create" or not jobs:
            await self._create()
            return
        job_id = dice.choice(jobs)
        referee.counts[f"asked to {what}"] += 1
        match what:
            case "patch":
                patch = {"priority": dice.randrange(10)}
                await self._ask(lambda servicer: servicer.update_job(job_id, patch))
            case "reschedule":
                again = {"schedule": dice.choice(SCHEDULES[:3])}
                await self._ask(lambda servicer: servicer.update_job(job_id, again))
            case "pause":
                await self._ask(lambda servicer: servicer.pause_job(job_id))
            case "resume":
                paused = [each for each in jobs if referee.jobs[each].state == "paused"]
                resumed = dice.choice(paused) if paused else job_id
                await self._ask(lambda servicer: servicer.resume_job(resumed))
            case "delete":
                await self._ask(lambda servicer: servicer.delete_job(job_id))
            case "trigger":
                await self._ask(lambda servicer: servicer.trigger_job(job_id))
            case "cancel":
                await self._cancel()
            case "retry":
                ended = [key for key in referee.runs if key[0] == job_id and key not in referee.hot]
                if ended:
                    name = run_id(*dice.choice(ended))
                    await self._ask(lambda servicer: servicer.retry_run(name))

    async def _cancel(self) -> None:
        hot = self._referee.hot
        active = [key for key, known in hot.items() if known.run.state != RunState.WAITING]
        choice: list[RunKey] = active if active and self._dice.random() < 0.8 else list(hot)
        if choice:
            await self._cancel_run(self._dice.choice(choice))

    async def _cancel_run(self, key: RunKey) -> None:
        answer = await self._ask(lambda servicer: servicer.cancel_run(run_id(*key)))
        if answer is not None:
            self._referee.cancel_acknowledged(key)


class Spoiler(Client):
    """Cancels some runs at the very moment at which their code is over, so that the two meet in the store."""

    def over(self, key: RunKey) -> None:
        """The code of an attempt has just ended."""
        if not self._world.calm and self._dice.random() < SPOILT:
            self._world.faults["cancelled while it was being told of"] += 1
            self._world.loop.start(None, self._cancel_run(key))


async def _serve(work: Coroutine[Any, Any, Any], answer: asyncio.Future[Any]) -> None:
    try:
        result = await work
    except DulyError as error:
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)
