"""`duly cluster`: what it starts, what it says, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from cluster.running import TESTS, RunningCluster, running_cluster, start
from duly import Duly
from system.served import skipped, streamed, until

SMALL = ("--shards", "2", "--servicers", "2", "--schedulers", "1", "--workers", "1", "--slots", "2")


def command(cluster: RunningCluster, *words: str) -> subprocess.CompletedProcess[str]:
    """A duly command against the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "duly.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "DULY_SERVER": cluster.url, "PYTHONPATH": str(TESTS)},
        check=False,
        timeout=60,
    )


def children(pid: int) -> list[int]:
    """The processes that it has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """It runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def hooked(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """Settings with a webhook, and what it hears: events and names of jobs."""
    heard: list[tuple[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            heard.append((event["type"].removeprefix("duly.run."), event["data"]["job"]["name"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is declared
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    (folder / "duly.toml").write_text(
        f"""[[webhook]]
url = "http://127.0.0.1:{server.server_port}/"
events = ["overdue", "succeeded"]
names = ["hello", "moon"]
allow_private = true
secret = "whsec_{"A" * 40}"
"""
    )
    try:
        yield heard
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.mark.timeout(120)
def test_a_cluster_works_ends_and_picks_up_its_data(tmp_path: Path) -> None:
    """From one command: jobs by CLI and by Python, files, one URL for all servicers; Ctrl-C ends everything."""
    directory = tmp_path / "a" / "cluster"
    directory.parent.mkdir(mode=0o700)
    with (
        hooked(directory.parent) as heard,
        running_cluster(directory, *SMALL, "--app", "system.marking:app", "--app", "cluster.ticking:app") as cluster,
    ):
        done = command(cluster, "create", "--schedule", "now", "--wait", "--name", "hello", "--", "/bin/echo", "hi")
        assert done.returncode == 0, done.stderr
        assert command(cluster, "run", "log", "hello").stdout == "hi\n"
        marks = tmp_path / "marks"
        marks.mkdir()
        with Duly(cluster.url) as duly:
            assert duly.submit("system.marking:mark", str(marks)).result(timeout=30).startswith(str(marks))
            assert {shard.name for shard in duly.shards()} == {"s0", "s1"}
            tick = until(lambda: duly.jobs(name="tick").items, what="the job of the app's decorated function")[0]
            until(lambda: duly.runs(job_id=tick.id, state="succeeded").items, what="a tick")
            with streamed([*cluster.servicers]) as streams:
                slow = duly.create(argv=["/bin/sleep", "3"], schedule="every 1s", overlap="skip", name="slow")
                until(lambda: all(skipped(events, slow.id) for events in streams), what="what the schedulers ended")
                duly.delete(slow.id)
            duly.create(argv=["/bin/true"], schedule="now", requires={"zone": "moon"}, max_lateness="1ms", name="moon")
            until(lambda: ("overdue", "moon") in heard, what="the scheduler's event")
            until(lambda: ("succeeded", "hello") in heard, what="the servicer's event")
        for url in (cluster.url, *cluster.servicers):
            assert httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
        members = cluster.ask("status")
        for name in ("scheduler-0", "worker-0"):
            probes = members[name]["url"]
            assert httpx2.get(f"{probes}/readyz", trust_env=False).json() == {"status": "ok"}
            assert "duly_broker_messages_total" in httpx2.get(f"{probes}/metrics", trust_env=False).text
        for secret in ("duly.toml", "cluster.json", "control"):
            assert stat.S_IMODE((directory / secret).stat().st_mode) == 0o600
        pids = children(cluster.process.pid)
        for pid in pids:
            assert b"postgresql://" not in Path(f"/proc/{pid}/cmdline").read_bytes(), "a password on a command line"
        assert cluster.end(signal.SIGINT) == 0
        assert not any(map(alive, pids))
    with running_cluster(directory, *SMALL) as cluster:
        shown = command(cluster, "job", "show", "hello", "--json")
        assert shown.returncode == 0, shown.stderr
        again = command(cluster, "job", "trigger", "hello", "--json")
        assert again.returncode == 0, again.stderr


@pytest.mark.timeout(120)
def test_a_killed_cluster_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    """SIGKILL of the supervisor ends every process; the same directory is not run twice, and not with other shards."""
    directory = tmp_path / "cluster"
    with running_cluster(directory, *SMALL) as cluster:
        second = start(directory, SMALL)
        assert second.wait(timeout=30) == 4
        assert second.stdout is not None
        second.stdout.close()
        job = command(cluster, "create", "--schedule", "in 1h", "--json", "--", "/bin/true")
        assert job.returncode == 0, job.stderr
        pids = children(cluster.process.pid)
        assert len(pids) == 2 + 1 + 2 + 1 + 1
        cluster.process.kill()
        cluster.process.wait(timeout=30)
        until(lambda: not any(map(alive, pids)), within=30, what="the end of all processes")
    with running_cluster(directory, *SMALL) as cluster, Duly(cluster.url) as duly:
        assert len(duly.jobs().items) == 1
    other = start(directory, ("--shards", "3"))
    assert other.wait(timeout=30) == 2
    assert other.stdout is not None
    other.stdout.close()


@pytest.mark.timeout(120)
def test_with_tokens_the_roles_have_one_of_their_own(tmp_path: Path) -> None:
    """Strangers are refused, workers are not, and an app's jobs can be registered from outside."""
    directory = tmp_path / "cluster"
    duly = [sys.executable, "-m", "duly.cli"]
    words = ["token", "create", "--dir", str(directory), "--scope", "submit", "--namespace", "default"]
    token = subprocess.run([*duly, *words], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    with running_cluster(directory, *SMALL, "--app", "cluster.ticking:app") as cluster:
        assert httpx2.get(f"{cluster.url}/v1/jobs", trust_env=False).status_code == 401
        with Duly(cluster.url, token=token) as client:
            [tick] = until(lambda: client.jobs(name="tick").items, what="the job of the app's decorated function")
            until(lambda: client.runs(job_id=tick.id, state="succeeded").items, what="a tick")
        again = command(cluster, "register", "cluster.ticking:app", "--token", token, "--json")
        assert again.returncode == 0, again.stderr
        assert tick.id in again.stdout


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A role that cannot start says so in the cluster's own error, and nothing stays behind."""
    process = start(tmp_path / "cluster", (*SMALL, "--app", "no_such_module:app"))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) != 0
    assert "no_such_module" in (tmp_path / "cluster.err").read_text()
