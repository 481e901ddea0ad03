"""What is watched through one servicer and written by another: over one NATS, and without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from duly.cluster.nats_server import NatsServers
from duly.core.contract import EventView, JobView
from duly.core.instants import SECOND
from duly.core.messages import NOTICES, AnyMessage, News
from duly.core.model import Job, Run
from duly.roles.herald import Herald
from nats_server import eventually, nats_servers
from roles.site import Site


@pytest.fixture
def nats() -> Iterator[NatsServers]:
    """A server for this test alone."""
    with nats_servers() as servers:
        yield servers


@pytest.fixture
async def site(request: pytest.FixtureRequest, tmp_path: Path, nats: NatsServers) -> AsyncIterator[Site]:
    """All up; reports are taken by the first servicer only, and what follows is watched through the second.

    With a parameter, tasks are not scripted but run.
    """
    opened = Site(tmp_path, nats)
    try:
        await opened.open(runners=not hasattr(request, "param"))
        await opened.servicers[1].reports.stop()
        opened.http._urls = opened.urls[:1]
        yield opened
    finally:
        await opened.close()


class Watcher:
    """The events of a servicer, the second if nothing is said."""

    def __init__(self, site: Site, at: int = 1) -> None:
        self.seen: list[EventView] = []
        self._site = site
        self._at = at
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        async for event in self._site.servicers[self._at].events():
            self.seen.append(event)

    async def begun(self) -> None:
        """Returns once the first servicer knows that somebody watches."""
        news = self._site.servicers[0].news
        await eventually(lambda: news.herald.watched)

    def has(self, kind: str, job: JobView) -> bool:
        """It has seen such an event of the job."""
        return any(event.type == kind and event.job_id == job.id for event in self.seen)

    async def stop(self) -> None:
        """Watch no longer."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def test_a_wait_ends_when_another_servicer_takes_the_report(site: Site) -> None:
    """It is woken; it does not only find out when it looks again."""
    site.script.lasts = lambda held: SECOND // 2
    job = await site.create("now", at=1)
    run = (await site.runs(job))[0]
    woken = site.servicers[1].event_log.waiter(run.key)
    view = await site.servicers[1].wait_run(run.id, timeout=30 * SECOND)
    assert view.state == "succeeded"
    await eventually(woken.is_set)


async def test_events_are_seen_through_every_servicer(site: Site) -> None:
    """Of jobs and of runs, with what they are; and nothing is sent while nobody watches."""
    sent: list[AnyMessage] = []

    async def spy(message: AnyMessage) -> None:
        sent.append(message)

    await site.brokers["w-1"].subscribe(NOTICES, spy)
    unseen = await site.create("now", name="unseen")
    await site.come_to(unseen, "succeeded")
    assert not any(isinstance(message, News) for message in sent)
    watcher = Watcher(site)
    await watcher.begun()
    job = await site.create("now", name="seen")
    await eventually(lambda: watcher.has("run.finished", job))
    assert watcher.has("job.created", job)
    [finished] = [event for event in watcher.seen if event.type == "run.finished" and event.job_id == job.id]
    assert finished.data["state"] == "succeeded"
    assert not watcher.has("run.finished", unseen)
    await watcher.stop()


async def test_what_a_scheduler_ends_is_seen_through_every_servicer(site: Site) -> None:
    """Skipped runs, once each; a scheduler that has just begun asks who watches, and need not wait to be told."""
    watchers = [Watcher(site, at) for at in (0, 1)]
    for watcher in watchers:
        await watcher.begun()
    late = Herald(broker=site.brokers["c0"], clock=site.clock, origin="late")
    await site.brokers["c0"].subscribe(NOTICES, late.hear)
    await late.start()
    await eventually(lambda: late.watched)
    await late.stop()
    site.script.lasts = lambda held: 3 * SECOND
    job = await site.create("every 1s", overlap="skip")

    def skipped(watcher: Watcher) -> list[str | None]:
        ended = [event for event in watcher.seen if event.type == "run.finished" and event.job_id == job.id]
        return [event.run_id for event in ended if event.data["state"] == "skipped"]

    for watcher in watchers:
        await eventually(lambda watcher=watcher: len(skipped(watcher)) >= 2)  # type: ignore[misc]
        assert len(set(skipped(watcher))) == len(skipped(watcher))
        await watcher.stop()


async def test_what_is_too_much_to_be_told_is_a_gap(site: Site) -> None:
    """More than waits to be told, or than is read in a second: the stream says how many events are missing."""
    watcher = Watcher(site)
    await watcher.begun()
    job = await site.create("in 1h")
    run = (await site.runs(job))[0]
    herald = site.servicers[0].news.herald
    herald.tell("run.finished", 1, [run.key] * 15_000, ())
    herald.tell("run.finished", 2, [run.key] * 15_000, ())

    def gaps() -> int:
        return sum(event.data["events"] for event in watcher.seen if event.type == "stream.skipped")

    def told() -> int:
        return sum(event.type == "run.finished" for event in watcher.seen)

    await eventually(lambda: gaps() + told() == 30_000)
    assert gaps() >= 15_000
    await watcher.stop()


async def test_without_a_broker_events_and_waits_come_from_the_store(site: Site) -> None:
    """Slower, by a look a second; and by the broker again when it is back."""
    watcher = Watcher(site)
    await watcher.begun()
    await site.cut()
    site.script.lasts = lambda held: 2 * SECOND if held.job.name == "long" else 0
    await eventually(lambda: site.servicers[1].news._looked_from is not None)
    long, short = await site.create("now", name="long"), await site.create("now", name="short")
    view = await site.servicers[1].wait_run((await site.runs(short))[0].id, timeout=30 * SECOND)
    assert view.state == "succeeded"
    for job in (long, short):
        await eventually(lambda job=job: watcher.has("run.finished", job))  # type: ignore[misc]  # a default, not an argument
    assert watcher.has("run.started", long)
    assert len([event for event in watcher.seen if event.type == "run.finished" and event.job_id == long.id]) == 1
    await site.mend()
    await eventually(lambda: site.servicers[1].news._looked_from is None)
    after = await site.create("now", name="after")
    await eventually(lambda: watcher.has("run.finished", after))
    await watcher.stop()


@pytest.mark.parametrize("site", ["real tasks"], indirect=True)
async def test_a_log_is_followed_through_any_servicer(site: Site) -> None:
    """As it is written while the broker lives; whole at the end when it does not."""

    async def follow(job: JobView) -> bytes:
        run = (await site.runs(job))[0]
        pieces = site.servicers[1].follow_log(run.id, stream="stdout")
        return b"".join([piece.data async for piece in pieces])

    gate = site.folder / "gate"
    script = f"echo first; until [ -e {gate} ]; do sleep 0.05; done; echo last"
    task = {"kind": "command", "argv": ["/bin/sh", "-c", script]}
    job = await site.create("now", task=task)
    await site.come_to(job, "running")
    live = site.servicers[1].follow_log((await site.runs(job))[0].id, stream="stdout")
    assert (await anext(live)).data == b"first\n"
    following = asyncio.ensure_future(follow(job))
    await site.cut()
    gate.touch()
    await site.come_to(job, "succeeded")
    assert await following == b"first\nlast\n"
    assert b"".join([piece.data async for piece in live]) == b"last\n"


async def test_each_event_has_one_sender(site: Site) -> None:
    """What another servicer has committed is seen, and its webhooks are left to that one."""
    told: list[tuple[int, str]] = []
    for number, servicer in enumerate(site.servicers):

        def committed(kind: str, pairs: Sequence[tuple[Run, Job]], at: int, number: int = number) -> None:
            told.extend((number, kind) for _ in pairs if kind == "run.finished")

        servicer.event_log.committed = committed
    watcher = Watcher(site)
    await watcher.begun()
    job = await site.create("now", name="tell")
    await eventually(lambda: watcher.has("run.finished", job))
    assert told == [(0, "run.finished")]
    await watcher.stop()
