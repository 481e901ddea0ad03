"""`duly.testing`: a program's jobs on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from duly import Duly, current_run
from duly.core.errors import Conflict, PreconditionFailed
from duly.testing import manual

duly = Duly("never-made.db")
seen: list[str] = []


@duly.job(schedule="0 18 * * *", timezone="Europe/Berlin")
def close_of_day() -> str:
    """Notes when it was due."""
    seen.append(current_run.scheduled_at.isoformat())
    return "closed"


@duly.job(retry={"max_attempts": 3, "base": "10s", "cap": "10s"})
async def fragile() -> int:
    """Fails twice."""
    if current_run.attempt < 3:
        raise ValueError("not yet")
    return current_run.attempt


def test_days_pass_at_once() -> None:
    """Three evenings in Berlin, each on its instant, without a file and without waiting."""
    seen.clear()
    with manual(duly, start="2027-01-15T08:00:00Z") as time:
        time.advance("3d")
        runs = time.runs(close_of_day)
        assert [run.state for run in runs] == ["succeeded"] * 3
        assert [run.lateness_ms for run in runs] == [0.0] * 3
        assert time.now == "2027-01-18T08:00:00.000000Z"
    assert seen == [f"2027-01-{day}T17:00:00+00:00" for day in (15, 16, 17)]


def test_retries_wait_their_backoff_on_the_clock() -> None:
    """The third attempt comes twenty seconds later, and not before."""
    with manual(duly) as time:
        handle = duly.submit(fragile, at="in 1m")
        time.advance("1m15s")
        assert handle.run.state == "waiting"
        assert handle.run.attempt == 2
        time.advance("5s")
        assert handle.result(timeout=5) == 3
        assert [attempt.state for attempt in handle.run.attempts] == ["failed", "failed", "succeeded"]


def test_each_block_is_a_world_of_its_own() -> None:
    """Nothing of the former block is left."""
    with manual(duly) as time:
        assert time.runs() == []


def test_a_client_of_a_server_has_no_clock_to_move() -> None:
    """There is nothing of its own to replace."""
    with pytest.raises(Conflict), manual(Duly("http://127.0.0.1:9")):
        pass


def test_versions_of_a_job_in_a_program() -> None:
    """The same calls as of a server: listed, read, restored."""
    with manual(duly, start="2027-01-15T08:00:00Z") as time:
        job = duly.create(function="never:run", schedule="@yearly")
        time.advance("1h")
        duly.update(job.id, priority=9)
        newest, first = duly.versions(job.id).items
        assert (newest.version, newest.at, newest.changed) == (2, "2027-01-15T09:00:00.000000Z", ["priority"])
        assert first == duly.get_version(job.id, 1)
        page = duly.versions(job.id, limit=1)
        assert (page.items, duly.versions(job.id, cursor=page.next).items) == ([newest], [first])
        assert duly.restore(job.id, 1, if_version=2).priority == 5
        with pytest.raises(PreconditionFailed):
            duly.restore(job.id, 1, if_version=2)
