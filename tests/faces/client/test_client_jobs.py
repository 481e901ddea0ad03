"""Jobs, runs and files through the client."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType

import pytest

from duly.core.contract import CommandSpec, HttpSpec
from duly.core.errors import Conflict, InvalidInput, NotFound, PreconditionFailed, ScheduleError
from duly.faces.client import Client


def test_a_command_with_its_files(client: Client, report: Path, tmp_path: Path) -> None:
    """Code and inputs are uploaded; log and outputs come back, piece by piece where they may be large."""
    job = client.create(
        code=report,
        schedule="now",
        argv=["./task", "there"],
        env={"WHO": "me"},
        inputs={"x.csv": b"a,b\n", "more/y.csv": io.BytesIO(b"c\n")},
        name="report",
    )
    assert isinstance(job.task, CommandSpec)
    run = client.wait(client.runs(job_id=job.id).items[0].id, timeout="20s")
    assert (run.state, run.exit_code) == ("succeeded", 0)
    assert client.log(run.id, stream="stdout") == "hello there me\n"
    assert client.log(run.id) == "hello there me\ncareful\n"
    assert {piece.stream: piece.data for piece in client.follow_log(run.id)} == {
        "stdout": b"hello there me\n",
        "stderr": b"careful\n",
    }
    assert [output.path for output in client.outputs(run.id)] == ["copy.csv"]
    assert client.output(run.id, "copy.csv") == b"a,b\n"
    saved = client.save_output(run.id, "copy.csv", tmp_path / "saved.csv")
    assert saved.read_bytes() == b"a,b\n"
    with pytest.raises(NotFound):
        client.save_output(run.id, "nothing.csv", tmp_path / "nothing.csv")
    assert not list(tmp_path.glob("*nothing*"))


def test_a_request(client: Client, server: str) -> None:
    """An HTTP job; here the server asks itself."""
    job = client.create(url=f"{server}/healthz", method="GET", schedule="now", expect="2xx")
    assert isinstance(job.task, HttpSpec)
    assert client.wait(client.runs(job_id=job.id).items[0].id, timeout=20).state == "succeeded"


def test_a_task_as_the_api_has_it(client: Client) -> None:
    """`task=` takes what JSON would say, and refuses what it would refuse, with the pointer."""
    job = client.create(task={"kind": "command", "argv": ["true"]}, schedule="in 1h")
    assert isinstance(job.task, CommandSpec)
    with pytest.raises(InvalidInput) as caught:
        client.create(task={"kind": "command", "argv": "true"}, schedule="in 1h")
    assert caught.value.errors[0].pointer == "/task/argv"
    with pytest.raises(InvalidInput, match="give one of"):
        client.create(schedule="now")
    with pytest.raises(InvalidInput, match="there is no file"):
        client.create(code="/nowhere/at/all", schedule="now")
    with pytest.raises(TypeError, match="no option 'prio'"):
        client.create(task={"kind": "command", "argv": ["true"]}, schedule="now", prio=5)  # type: ignore[call-arg]  # that is the test


def test_errors_keep_their_class(client: Client) -> None:
    """What is wrong has its pointer here as there; what does not exist is NotFound."""
    with pytest.raises(InvalidInput, match="61 is not a minute") as caught:
        client.create(task={"kind": "command", "argv": ["true"]}, schedule="61 * * * *")
    assert caught.value.errors[0].pointer == "/schedule"
    with pytest.raises(NotFound):
        client.get("01970000-0000-7000-8000-000000000000")
    with pytest.raises(NotFound):
        client.get_run("01970000-0000-7000-8000-000000000000@20260101T000000.000000Z")


def test_the_life_of_a_job(client: Client) -> None:
    """Update, pause, resume, trigger, delete; a version that has passed is refused."""
    job = client.create(argv=["true"], schedule="every 1h", labels={"case": "life"}, key="life", retry=1)
    changed = client.update(job.id, priority=9, schedule="every 2h", timeout="5m", if_version=job.version)
    assert (changed.priority, changed.schedule, changed.timeout) == (9, "every 2h", "5m")
    assert client.update(job.id, timeout=None).timeout == "1h"
    assert client.update(job.id, task={"argv": ["false"]}).task.argv == ["false"]  # type: ignore[union-attr]  # a command task
    with pytest.raises(PreconditionFailed):
        client.update(job.id, priority=1, if_version=1)
    assert client.pause(job.id).state == "paused"
    assert client.resume(job.id).state == "active"
    run = client.trigger(job.id, wait="20s")
    assert run.manual
    assert client.wait(run.id, 20).attempt == 1
    assert [one.id for one in client.jobs(label="case:life").items] == [job.id]
    assert client.bulk("pause", label=["case:life"], dry_run=True).matched == 1
    client.delete(job.id)
    client.delete(job.id)
    with pytest.raises(Conflict):
        client.trigger(job.id)


def test_pages(client: Client) -> None:
    """One page leads to the next by its cursor."""
    for number in range(3):
        client.create(argv=["true"], schedule="in 1h", name=f"page {number}", labels={"case": "pages"})
    first = client.jobs(label=["case:pages"], order="name", limit=2)
    rest = client.jobs(label=["case:pages"], order="name", limit=2, cursor=first.next)
    assert [job.name for job in [*first.items, *rest.items]] == ["page 0", "page 1", "page 2"]
    assert rest.next is None


def test_runs_and_their_explanation(client: Client, office: ModuleType) -> None:
    """Filters, retry, explain."""
    run = client.submit(office.add, 1).wait(20)
    assert [one.id for one in client.runs(job_id=run.job_id, state="succeeded").items] == [run.id]
    assert client.runs(job_id=run.job_id, until=run.scheduled_at).items == []
    again = client.wait(client.retry(run.id).id, 20)
    assert again.retry_of == run.id
    assert "succeeded" in client.explain(run.id).summary


def test_the_fleet(client: Client) -> None:
    """Counts, workers, shards, version, what runs."""
    assert client.stats().jobs >= 0
    assert [worker.state for worker in client.workers()] == ["ready"]
    assert [shard.name for shard in client.shards()] == ["s0"]
    assert client.version().version
    assert isinstance(client.running(), list)


def test_previews(client: Client) -> None:
    """The next times, asked of the server; a bad one says why."""
    preview = client.preview("0 2 * * *", timezone="Europe/Berlin", since="2026-01-01T00:00:00Z", count=2)
    assert [item.local for item in preview.items] == ["2026-01-01T02:00:00+01:00", "2026-01-02T02:00:00+01:00"]
    with pytest.raises(ScheduleError):
        client.preview("0 0 31 2 *")


def test_uploads_are_addressed_by_content(client: Client, tmp_path: Path) -> None:
    """A path, bytes and an open file with the same content are one blob; large ones go in pieces."""
    content = b"0123456789abcdef" * 50_000
    path = tmp_path / "blob"
    path.write_bytes(content)
    with path.open("rb") as file:
        digests = {client.upload(source).digest for source in (path, str(path), content, file)}
    assert len(digests) == 1


async def test_what_happens_is_streamed(client: Client) -> None:
    """Events, from the one after `after` on."""
    job = await client.aio.create(argv=["true"], schedule="in 1h", name="watched")
    events = client.aio.events(after="0-0")
    async for event in events:
        if event.job_id == job.id:
            assert event.type == "job.created"
            break
    await events.aclose()  # type: ignore[attr-defined]  # a generator
    await client.aio.close()
