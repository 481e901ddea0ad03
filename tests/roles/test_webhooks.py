"""Webhooks against a real receiver: what is sent, tried again, bounded, given up; and whom it does not slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from duly.adapters.httpx_sender import HttpxSender
from duly.adapters.system_clock import SystemClock
from duly.boot import assemble
from duly.core.instants import MILLISECOND, MINUTE, SECOND
from duly.core.model import CommandTask, Failure, Job, JobId, Run, RunState
from duly.core.webhook import WebhookRule, key_of
from duly.roles.overdue import OverdueWatch
from duly.roles.webhooks import Endpoint, Limits, Webhooks
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry
from roles.receiver import SECRET, Receiver, receiving, signature_of
from roles.stage import Stage

QUICK = Limits(timeout=MINUTE, first_pause=2 * MILLISECOND, longest_pause=5 * MILLISECOND, attempts=3)


def job(name: str = "nightly", namespace: str = "default", **labels: str) -> Job:
    """A job of a command."""
    return Job(
        id=JobId(f"0197aaaa-0000-7000-8000-{abs(hash(name)) % 10**12:012}"),
        task=CommandTask(argv=("true",)),
        schedule="now",
        created_at=0,
        updated_at=0,
        anchored_at=0,
        name=name,
        namespace=namespace,
        labels=labels,
    )


def run(of: Job, number: int = 0, state: RunState = RunState.FAILED, **more: Any) -> Run:
    """An ended run of it."""
    return Run(job_id=of.id, scheduled_at=number * SECOND, due_at=0, state=state, attempt=1, finished_at=1, **more)


def rule(url: str, **fields: Any) -> WebhookRule:
    """A rule that may reach loopback."""
    return WebhookRule(**{"url": url, "secret": SECRET, "allow_private": True} | fields)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@asynccontextmanager
async def sending(*rules: WebhookRule, limits: Limits = QUICK) -> AsyncIterator[Webhooks]:
    """The role over the real sender."""
    clock = SystemClock()
    ends = [Endpoint(f"w{n}", each, [key_of(SECRET, "/secret")]) for n, each in enumerate(rules)]
    webhooks = Webhooks(
        ends, sender=HttpxSender(clock), clock=clock, telemetry=Telemetry(), dice=lambda: 0.5, limits=limits
    )
    await webhooks.start()
    try:
        yield webhooks
    finally:
        await webhooks.stop()


async def settled(webhooks: Webhooks) -> None:
    """Returns once nothing waits and nothing is under way."""
    async with asyncio.timeout(20):
        while any(endpoint.held for endpoint in webhooks.endpoints):
            await SystemClock().sleep(MILLISECOND)


def failed(webhooks: Webhooks, count: int = 1, first: int = 0) -> None:
    """Some runs have failed."""
    of = job()
    webhooks.committed("run.finished", [(run(of, first + number), of) for number in range(count)], 7 * SECOND)


async def test_an_event_is_a_signed_cloud_event(receiver: Receiver) -> None:
    """CloudEvents 1.0, structured; its signature is what an implementation of its own computes."""
    of = job("nightly", team="ops")
    async with sending(rule(receiver.url)) as webhooks:
        error = Failure(kind="exit", message="exit status 3")
        webhooks.committed("run.finished", [(run(of, 5, error=error, exit_code=3), of)], 7 * SECOND)
        await settled(webhooks)
        view = webhooks.views()[0]
    (got,) = receiver.got
    event = got.event
    assert got.path == "/hook"
    assert got.headers["content-type"] == "application/cloudevents+json"
    assert {name: event[name] for name in ("specversion", "type", "subject", "source", "time")} == {
        "specversion": "1.0",
        "type": "duly.run.failed",
        "subject": f"{of.id}@19700101T000005.000000Z",
        "source": f"/v1/jobs/{of.id}",
        "time": "1970-01-01T00:00:07.000000Z",
    }
    assert event["id"] == got.headers["webhook-id"]
    assert event["data"]["job"] == {"id": of.id, "namespace": "default", "name": "nightly", "labels": {"team": "ops"}}
    assert event["data"]["run"]["error"]["message"] == "exit status 3"
    assert got.headers["webhook-signature"] == signature_of(got)
    assert abs(int(got.headers["webhook-timestamp"]) - SystemClock().wall() // SECOND) < 60
    assert (view.state, view.delivered, view.endpoint) == ("ok", 1, receiver.url.removesuffix("/hook"))


async def test_two_keys_both_sign(receiver: Receiver) -> None:
    """So that a receiver can change from one to the other."""
    other = "whsec_" + "B" * 40
    clock = SystemClock()
    endpoint = Endpoint("w", rule(receiver.url), [key_of(SECRET, ""), key_of(other, "")])
    webhooks = Webhooks(
        [endpoint], sender=HttpxSender(clock), clock=clock, telemetry=Telemetry(), dice=lambda: 0.5, limits=QUICK
    )
    await webhooks.start()
    failed(webhooks)
    await settled(webhooks)
    await webhooks.stop()
    (got,) = receiver.got
    assert got.headers["webhook-signature"].split() == [signature_of(got), signature_of(got, other)]


@pytest.mark.parametrize("word", ["500 Oops", "404 Not Found", "302 Found", "hang", "drip", "reset"])
async def test_what_is_not_taken_is_sent_again(receiver: Receiver, word: str) -> None:
    """The same event under the same id, signed anew; then all goes on."""
    receiver.says = lambda number: word if number == 0 else "204 No Content"
    impatient = msgspec.structs.replace(QUICK, timeout=300 * MILLISECOND, attempts=50)
    async with sending(rule(receiver.url), limits=impatient if word in ("hang", "drip") else QUICK) as webhooks:
        failed(webhooks)
        await settled(webhooks)
        view = webhooks.views()[0]
    first, second = receiver.got[0], receiver.got[-1]
    assert len(receiver.got) == 2 or word in ("hang", "drip")  # a slow machine may take longer than that patience
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert second.headers["webhook-signature"] == signature_of(second)
    assert (view.state, view.delivered, view.dropped) == ("ok", 1, {})
    assert view.problem is not None
    assert word.partition(" ")[0] in view.problem or "no answer" in view.problem or "Error" in view.problem


async def test_attempts_are_bounded_and_what_is_given_up_is_counted(receiver: Receiver) -> None:
    """Three tries, then the event is dropped; metrics tell."""
    receiver.says = lambda number: "503 Busy"
    async with sending(rule(receiver.url)) as webhooks:
        failed(webhooks, 2)
        await settled(webhooks)
        view = webhooks.views()[0]
        metrics = webhooks._telemetry.render()[0].decode()
    assert len(receiver.got) == 6
    assert (view.state, view.dropped, view.failures_in_a_row) == ("failing", {"attempts": 2}, 6)
    assert 'duly_webhook_dropped_total{reason="attempts",webhook="w0"} 2.0' in metrics
    assert 'duly_webhook_attempts_total{outcome="failed",webhook="w0"} 6.0' in metrics


async def test_a_queue_is_bounded(receiver: Receiver) -> None:
    """Beyond it events are dropped and counted; those in it arrive."""
    receiver.says = lambda number: "wait" if number < 4 else "200 OK"
    limits = msgspec.structs.replace(QUICK, queue=6)
    async with sending(rule(receiver.url), limits=limits) as webhooks:
        failed(webhooks, 10)
        assert webhooks.views()[0].dropped == {"queue_full": 4}
        await receiver.until(lambda: len(receiver.got) == 4)
        assert receiver.most_open == 4
        receiver.released.set()
        await settled(webhooks)
        assert webhooks.views()[0].delivered == 6
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 6


async def test_a_dead_endpoint_slows_no_other(receiver: Receiver) -> None:
    """While one hangs and its queue is full, the other has all events; the one who commits never waits."""
    async with receiving() as dead:
        dead.says = lambda number: "hang"
        limits = msgspec.structs.replace(QUICK, queue=5)
        async with sending(rule(dead.url), rule(receiver.url, name="live"), limits=limits) as webhooks:
            for number in range(40):
                failed(webhooks, 1, first=number)
                await receiver.until(lambda number=number: len(receiver.got) > number)  # type: ignore[misc]  # a default, not an argument
            hung, live = webhooks.views()
            assert hung.dropped == {"queue_full": 35}
            assert live.delivered >= 39
        assert webhooks.views()[0].dropped == {"queue_full": 35, "stopped": 5}


async def test_gone_is_for_good(receiver: Receiver) -> None:
    """410: nothing more is sent there; what comes is counted."""
    receiver.says = lambda number: "410 Gone"
    async with sending(rule(receiver.url)) as webhooks:
        failed(webhooks)
        await settled(webhooks)
        failed(webhooks, 3, first=1)
        view = webhooks.views()[0]
    assert len(receiver.got) == 1
    assert (view.state, view.dropped) == ("gone", {"gone": 4})


async def test_retry_after_holds_the_endpoint(receiver: Receiver) -> None:
    """A receiver that asks for rest gets it, also from other events; a clean stop tries once more."""
    receiver.says = lambda number: "429 Slow Down\r\nRetry-After: 3600" if number == 0 else "200 OK"
    async with sending(rule(receiver.url)) as webhooks:
        failed(webhooks)
        await receiver.until(lambda: len(receiver.got) == 1)
        async with asyncio.timeout(20):
            while not webhooks.endpoints[0].rest_until:
                await SystemClock().sleep(MILLISECOND)
        failed(webhooks, 1, first=1)
        assert webhooks.views()[0].waiting == 2
        await webhooks.drain()
        assert (webhooks.views()[0].waiting, webhooks.views()[0].delivered) == (0, 2)
    assert len(receiver.got) == 3


async def test_private_addresses_are_refused(receiver: Receiver) -> None:
    """Unless the rule allows them; nothing is sent, and it is said what to do."""
    async with sending(rule(receiver.url, allow_private=False)) as webhooks:
        failed(webhooks)
        await settled(webhooks)
        view = webhooks.views()[0]
    assert receiver.got == []
    assert (view.dropped, view.state) == ({"refused": 1}, "failing")
    assert view.problem is not None
    assert "127.0.0.1" in view.problem
    assert "allow_private = true" in view.problem


async def test_filters(receiver: Receiver) -> None:
    """By event, name, namespace and labels; all that are given must hold."""
    mine = rule(receiver.url, events=["succeeded"], names=["night*"], namespaces=["prod"], labels={"team": "ops"})
    cases = [
        (job("nightly", "prod", team="ops", x="y"), RunState.SUCCEEDED, True),
        (job("nightly-2", "prod", team="ops"), RunState.FAILED, False),
        (job("daily", "prod", team="ops"), RunState.SUCCEEDED, False),
        (job("nightly-3", "dev", team="ops"), RunState.SUCCEEDED, False),
        (job("nightly-4", "prod", team="web"), RunState.SUCCEEDED, False),
    ]
    async with sending(mine) as webhooks:
        for of, state, _ in cases:
            webhooks.committed("run.finished", [(run(of, 1, state), of)], 0)
        await settled(webhooks)
    assert [got.event["data"]["job"]["name"] for got in receiver.got] == ["nightly"]


async def test_a_large_event_leaves_parts_out_and_says_so(receiver: Receiver) -> None:
    """Never more than 64 KiB."""
    of = job()
    large = run(of, 1, RunState.SUCCEEDED, result=msgspec.Raw(b'"' + b"x" * 100_000 + b'"'))
    async with sending(rule(receiver.url, events=["finished"])) as webhooks:
        webhooks.committed("run.finished", [(large, of)], 0)
        await settled(webhooks)
    (got,) = receiver.got
    assert len(got.body) < 64 * 1024
    assert got.event["data"]["left_out"] == ["run/result"]
    assert "result" not in got.event["data"]["run"]


# -- which events a duly has --------------------------------------------------------------------------------


def told(stage: Stage) -> list[str]:
    """The events that a stage's roles commit, in order: `name event`."""
    from duly.core.webhook import events_of

    seen: list[str] = []

    def committed(kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        seen.extend(f"{of.name} {event}" for each, of in pairs for event in events_of(kind, each))

    stage.servicer.event_log.committed = committed
    for scheduler in stage.node.schedulers:
        for part in (scheduler, scheduler._dispatcher, scheduler._recovery):
            part._committed = committed
    return seen


async def test_the_events_of_runs(stage: Stage) -> None:
    """Each once: succeeded; failed after a retry; missed; skipped; cancelled; late."""
    seen = told(stage)
    stage.script.fails = lambda held: Failure(kind="exit", message="no") if held.job.name == "bad" else None
    stage.script.lasts = lambda held: 10 * SECOND if held.job.name == "long" else 0
    await stage.create("good", "now")
    await stage.create("bad", "now", retry={"max_attempts": 2, "backoff": "constant", "base": "1s"})
    long = await stage.create("long", "every 2s", max_runs=2, overlap="skip")
    future = await stage.create("never", "in 1h")
    await stage.until(60 * SECOND)
    await stage.servicer.cancel_run((await stage.runs(future))[0].id)
    assert seen.count("long skipped") == (await stage.words(long)).count("skipped") > 0
    others = sorted(event for event in seen if event != "long skipped")
    assert others == [
        "bad failed", "bad retrying", "good succeeded", "long succeeded", "long succeeded", "never cancelled",
    ]  # fmt: skip


async def test_late_and_missed(stage: Stage) -> None:
    """A clock that jumps: what it jumped over is missed, the run for it is late."""
    seen = told(stage)
    await stage.create("often", "every 1m", misfire="run_latest", max_runs=10, max_lateness="1s")
    await stage.until(30 * SECOND)
    stage.clock.skew += 5 * MINUTE
    await stage.advance(5 * SECOND)
    assert set(seen) == {"often missed", "often late", "often succeeded"}
    assert len(seen) == len(set(seen)) + seen.count("often missed") - 1


async def test_overdue(stage: Stage) -> None:
    """A run that no worker takes is told of once while it waits, not when it is merely due, and not by a standby."""
    seen = told(stage)
    scheduler = stage.node.schedulers[0]
    leads = [True]
    watch = OverdueWatch(
        shard="s0",
        store=stage.store,
        clock=stage.clock,
        leading=lambda: leads[0] and scheduler.leading,
        committed=scheduler._committed,
    )
    await watch.start()
    await stage.create("nobody", "in 5s", requires={"zone": "moon"}, max_lateness="10s")
    await stage.create("somebody", "in 5s", max_lateness="10s")
    await stage.until(14 * SECOND)
    assert seen == ["somebody succeeded"]
    await stage.until(40 * SECOND)
    assert seen == ["somebody succeeded", "nobody overdue"]
    leads[0] = False
    await stage.create("unseen", "in 5s", requires={"zone": "moon"})
    await stage.advance(30 * SECOND)
    assert len(seen) == 2
    await watch.stop()


async def test_a_whole_duly_sends(tmp_path: Path, receiver: Receiver) -> None:
    """From a setting to a request, for what workers report and for what schedulers decide."""
    from duly.core.contract import JobSpec
    from duly.core.definition import decode

    settings = Settings(dir=str(tmp_path / "d"), slots=1, webhook=[rule(receiver.url, events=["finished", "overdue"])])
    node = assemble(settings, FunctionRegistry())
    await node.start()
    try:
        task = {"kind": "command", "argv": ["false"]}
        spec = decode(msgspec.json.encode({"task": task, "schedule": "now", "name": "x"}), JobSpec)
        await node.servicer.create_job(spec)
        await receiver.until(lambda: bool(receiver.got))
        moon = {"task": task, "schedule": "now", "max_lateness": "1ms", "requires": {"zone": "moon"}}
        await node.servicer.create_job(decode(msgspec.json.encode(moon), JobSpec))
        await receiver.until(lambda: len(receiver.got) == 2)
    finally:
        await node.drain()
        await node.stop()
    assert receiver.got[0].event["type"] == "duly.run.failed"
    assert receiver.got[0].headers["webhook-signature"] == signature_of(receiver.got[0])
    assert receiver.got[1].event["type"] == "duly.run.overdue"
    assert node.servicer.webhook_views()[0].delivered == 2
