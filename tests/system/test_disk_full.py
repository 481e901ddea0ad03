"""The disk fills up under a working server: writes are refused as 507, nothing breaks, and all goes on with space."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from duly.adapters.sqlite_writer import translated
from duly.core.errors import StorageFull
from system.served import Served, until
from workers.bench import shell, working

MIB = 1 << 20
SIZE = 24 * MIB
MEANS = ["tmpfs", "file size"] if os.getuid() == 0 else ["file size"]


class Disk:
    """A directory whose space can be taken away and given back."""

    def __init__(self, folder: Path, means: str) -> None:
        self.folder = folder
        self.means = means
        self.filler = folder / "filler"

    def fill(self, served: Served) -> None:
        """Leave no byte: of the file system, or of what the server may make of its largest file."""
        if self.means == "tmpfs":
            with self.filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(64 * 1024))
            with self.filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(512))
        else:
            largest = max(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            hard = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (largest + 4096, hard))

    def give_back(self, served: Served) -> None:
        """Space again."""
        if self.means == "tmpfs":
            self.filler.unlink()
        else:
            hard = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture(params=MEANS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A small file system for root; a limit on the size of the server's files for everybody."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder, request.param)
    finally:
        if request.param == "tmpfs":
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def served(disk: Disk) -> Iterator[Served]:
    made = Served(disk.folder / "data", "--slots", "4", "--log-level", "error")
    yield made
    made.kill()


def body(schedule: str, *argv: str, **fields: Any) -> dict[str, Any]:
    """A job of a command."""
    return {"task": {"kind": "command", "argv": list(argv)}, "schedule": schedule, **fields}


def create(http: httpx2.Client, number: int) -> httpx2.Response:
    """One more job of some size, far from due."""
    return http.post("/v1/jobs", json=body("in 1h", "true", name=f"job {number}", labels={"x": "y" * 60}))


def states(http: httpx2.Client, job_id: str) -> list[str]:
    """The states of its runs, newest first."""
    return [run["state"] for run in http.get(f"/v1/jobs/{job_id}/runs", params={"limit": 100}).json()["items"]]


@pytest.mark.timeout(120)
def test_the_disk_is_full_for_a_while(disk: Disk, served: Served) -> None:
    """Creates answer 507 and leave nothing, reads go on; with space jobs run again, nothing acknowledged is gone."""
    served.start().close()
    with httpx2.Client(base_url=served.url, timeout=30) as http:
        ticking = http.post("/v1/jobs", json=body("every 1s", "true", overlap="allow")).json()["id"]
        running = http.post("/v1/jobs", json=body("now", "sleep", "4", retry={"max_attempts": 5, "base": "100ms"}))
        sleeper = running.json()["id"]
        until(lambda: "running" in states(http, sleeper), what="the sleeper")
        until(lambda: "succeeded" in states(http, ticking), what="a tick")
        created = [answer.json()["id"] for answer in (create(http, n) for n in range(20)) if answer.status_code == 201]
        assert len(created) == 20

        disk.fill(served)
        refused: list[httpx2.Response] = []

        def refusal() -> bool:
            answer = create(http, len(created))
            if answer.status_code == 201:
                created.append(answer.json()["id"])
                return False
            refused.append(answer)
            return len(refused) >= 5

        until(refusal, within=60, what="five refusals")
        assert {answer.status_code for answer in refused} == {507}, refused[-1].text
        assert refused[0].json()["code"] == "storage_full"
        upload = http.post("/v1/blobs", content=os.urandom(4 * MIB))
        if disk.means == "tmpfs":
            assert upload.status_code == 507, upload.text
        assert http.get(f"/v1/jobs/{created[0]}").status_code == 200, "reads go on"
        assert http.get("/v1/jobs", params={"limit": 1000}).status_code == 200

        disk.give_back(served)
        more = until(lambda: _created(create(http, -1)), what="a create")
        count = states(http, ticking).count("succeeded")
        until(lambda: states(http, ticking).count("succeeded") > count, what="a tick again")
        until(lambda: states(http, sleeper) == ["succeeded"], within=40, what="the sleeper's end")
        for job_id in [*created, more]:
            assert http.get(f"/v1/jobs/{job_id}").status_code == 200, "answered for, and not there"
        listed = {job["id"] for job in _all(http)}
        assert listed == {*created, more, ticking, sleeper}, "what was refused is not there"
    status, stderr = served.stop()
    assert status == 0, stderr
    db = apsw.Connection(str(disk.folder / "data" / "shard-s0.db"))
    assert db.pragma("integrity_check") == "ok"
    assert not db.execute("select r.job from run r join history h using (job, scheduled)").fetchall()
    db.close()


def _created(answer: httpx2.Response) -> str | None:
    return answer.json()["id"] if answer.status_code == 201 else None


def _all(http: httpx2.Client) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = http.get("/v1/jobs", params={"limit": 1000} | ({} if cursor is None else {"cursor": cursor})).json()
        yield from page["items"]
        cursor = page.get("next")
        if not cursor:
            return


@pytest.mark.timeout(120)
def test_a_server_starts_on_a_full_disk_or_says_why_not(serve: Callable[..., Served], disk: Disk) -> None:
    """With no space left at the start it either serves reads or ends with a sentence; with space it comes up whole."""
    served = Served(disk.folder / "data", "--log-level", "error")
    with served.start() as duly:
        job = duly.create(task={"kind": "command", "argv": ["true"]}, schedule="in 1h")
    served.kill()
    if disk.means == "tmpfs":
        with contextlib.suppress(OSError), disk.filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        try:
            with served.start() as duly:
                assert duly.get(job.id).id == job.id
        except AssertionError as refusal:
            assert "Traceback" not in str(refusal), refusal  # noqa: PT017 - either is right
        served.kill()
        disk.filler.unlink()
    with served.start() as duly:
        assert duly.get(job.id).id == job.id
    assert served.stop()[0] == 0


@pytest.mark.parametrize("script", ["echo text", "echo data > output/x"])
async def test_output_that_cannot_be_stored_fails_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """The command ran; its attempt says what could not be kept, and another may succeed. Nothing of it stays."""

    async def full(*_: Any, **__: Any) -> tuple[str, int]:
        raise StorageFull

    async with working(tmp_path) as bench:
        monkeypatch.setattr(bench.blobs, "put", full)
        event = await bench.failed(await bench.give(shell(script)))
        assert event.error.kind == "limit"
        assert "could not be stored" in event.error.message
        assert event.started_at is not None
        assert event.retryable
        await bench.until(lambda: not list(bench.scratch.glob("*/commands/*")))


def test_a_failed_fsync_is_never_taken_for_a_full_disk() -> None:
    """It may say "no space" as well: but what is on the disk then is unknown, and the store has to stop."""

    class Connection:
        system_errno = errno.ENOSPC

    for code, full in ((apsw.SQLITE_IOERR_WRITE, True), (apsw.SQLITE_IOERR_FSYNC, False)):
        problem = apsw.IOError("disk I/O error")
        problem.extendedresult = code
        assert isinstance(translated(problem, Connection()), StorageFull) == full  # type: ignore[arg-type]  # all that is read of one
