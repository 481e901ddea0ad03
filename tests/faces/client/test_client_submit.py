"""Submitting functions, and what their handles say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from duly.core.errors import Conflict, IdempotencyKeyReused, InvalidInput, TimedOut
from duly.faces.client import Client
from duly.faces.handles import BatchRefused, JobFailed


def test_a_result_comes_back(client: Client, office: ModuleType) -> None:
    """What the function returns is what `result` gives; the run tells how late it was."""
    handle = client.submit(office.add, 2, b=3, priority=9, labels={"a": "b"})
    assert handle.result(timeout=20) == 5
    assert handle.status == "succeeded"
    assert handle.run.id == handle.id
    assert handle.run.priority == 9
    assert handle.run.lateness_ms is not None
    job = client.get(handle.job_id)
    assert job.labels == {"a": "b"}
    assert job.state == "completed"


async def test_handles_can_be_awaited(client: Client, office: ModuleType) -> None:
    """In an event loop, from either face."""
    assert await client.submit(office.add, 1) == 2
    handle = await client.aio.submit("office:add", 1, 5)
    assert await handle == 6
    assert (await handle.run()).state == await handle.status() == "succeeded"
    await client.aio.close()


def test_a_failure_is_told(client: Client, office: ModuleType) -> None:
    """JobFailed carries the run, with the exception of the function."""
    handle = client.submit(office.fail, "no paper", retry=1)
    with pytest.raises(JobFailed, match="no paper") as caught:
        handle.result(timeout="20s")
    error = caught.value.run.error
    assert error is not None
    assert error.kind == "exception"
    assert handle.wait().state == "failed"


def test_the_decorator_speaks_for_submitted_runs(server: str, office: ModuleType) -> None:
    """Options of the decorator hold, unless the call says otherwise; the function itself stays as it was."""
    with Client.connect(server) as client:
        decorated = client.job(retry=7, priority=2, timeout="5m")(office.nightly)
        job = client.get(decorated.submit(at="in 1h", priority=8).job_id)
        assert (job.retry.max_attempts, job.priority, job.timeout) == (7, 8, "5m")
        assert decorated is office.nightly
        assert decorated() is None


@pytest.mark.parametrize(
    ("at", "schedule"),
    [
        (None, "now"),
        ("in 1h", "in 1h"),
        (timedelta(hours=36), "in 1d12h"),
        (datetime(2099, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2099-01-02T03:04:05.000006Z"),
    ],
)
def test_times(client: Client, office: ModuleType, at: Any, schedule: str) -> None:
    """Now, a schedule, a time from now, an instant."""
    handle = client.submit(office.add, 1, at=at)
    assert client.get(handle.job_id).schedule == schedule
    if at is not None:
        assert handle.status == "waiting"
        assert handle.cancel().state == "cancelled"
        with pytest.raises(JobFailed, match="cancelled"):
            handle.result()


def test_waiting_ends(client: Client, office: ModuleType) -> None:
    """TimedOut after as long as was asked for; the run is none the worse."""
    handle = client.submit(office.add, 1, at="in 1h")
    with pytest.raises(TimedOut, match="waiting after 50ms"):
        handle.result(timeout=0.05)
    handle.cancel()
    with pytest.raises(Conflict):
        client.cancel(client.submit(office.add, 1).wait(20).id)


def test_a_key_stands_for_one_run(client: Client, office: ModuleType) -> None:
    """The same key and call give the same run; the same key for another call is refused."""
    first = client.submit(office.add, 1, key="one", at="in 1h")
    again = client.submit(office.add, 1, key="one", at="in 1h")
    assert first.id == again.id
    with pytest.raises(IdempotencyKeyReused):
        client.submit(office.add, 2, key="one", at="in 1h")
    with pytest.raises(InvalidInput, match="visible ASCII"):
        client.submit(office.add, 2, key="schlüssel")


def test_bad_calls_are_refused_here(client: Client, office: ModuleType) -> None:
    """Wrong arguments, a function without a place, arguments that are no JSON, a time that could be any."""
    with pytest.raises(TypeError, match="missing"):
        client.submit(office.add)
    with pytest.raises(TypeError, match="colour"):
        client.submit(office.add, 1, colour="red")
    with pytest.raises(InvalidInput, match="top of a module"):
        client.submit(lambda: None)
    with pytest.raises(InvalidInput, match="JSON"):
        client.submit(office.add, object())
    with pytest.raises(InvalidInput, match="tzinfo"):
        client.submit(office.add, 1, at=datetime(2099, 1, 1))  # noqa: DTZ001 - that is what is refused
    with pytest.raises(InvalidInput, match="unit"):
        client.submit(office.add, 1, timeout=5)
    with pytest.raises(InvalidInput, match="priority"):
        client.submit(office.add, 1, priority=42)


def test_many_at_once(client: Client, office: ModuleType) -> None:
    """Tuples, and pairs with names; one time for all, or one each; handles in order."""
    handles = client.submit_many(office.add, [(1,), (2, 3), ((4,), {"b": 4})], priority=7)
    assert [handle.result(20) for handle in handles] == [2, 5, 8]
    assert handles[0].run.priority == 7
    times = ["in 1h", datetime(2099, 1, 1, tzinfo=UTC)]
    later = client.submit_many("office:add", [(1,), (2,)], at=times)
    assert [client.get(handle.job_id).schedule for handle in later] == ["in 1h", "2099-01-01T00:00:00.000000Z"]
    assert [handle.status for handle in later] == ["waiting", "waiting"]
    assert client.submit_many(office.add, []) == []


def test_some_of_many_refused(client: Client, office: ModuleType) -> None:
    """The others are made, and the error says which were."""
    with pytest.raises(BatchRefused, match="1 of 3 jobs were refused; the first, number 1") as caught:
        client.submit_many(office.add, [(1,), (2,), (3,)], at=["in 1h", "in a while", "in 1h"])
    assert list(caught.value.refused) == [1]
    assert sorted(caught.value.job_ids) == [0, 2]
    assert client.get(caught.value.job_ids[2]).task.args == [3]  # type: ignore[union-attr]  # a function task


def test_bad_batches_are_refused_here(client: Client, office: ModuleType) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidInput, match="2 times for 1 calls"):
        client.submit_many(office.add, [(1,)], at=["now", "now"])
    with pytest.raises(TypeError, match="a call is a tuple"):
        client.submit_many(office.add, ["a.png"])
    with pytest.raises(TypeError, match="missing"):
        client.submit_many(office.add, [()])
    with pytest.raises(TypeError, match="too many"):
        client.submit_many(office.add, [(1, 2, 3)])


async def test_the_loop_of_the_client_is_not_blocked(client: Client) -> None:
    """A blocking call from within duly's own loop would wait for itself for ever; it is refused."""

    async def wrong() -> None:
        client.stats()

    with pytest.raises(RuntimeError, match=r"duly\.aio"):
        await client.thread.reach(wrong())
