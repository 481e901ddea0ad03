"""A real cluster under load, and the death, the pause and the loss of each of its parts, one after the other.

Afterwards everything that is owed is matched to what ran, by the checker of the crash rounds. Not one call of the
load may fail but for a shard that is down: the clients go to another servicer by themselves, and one of them goes
through HAProxy, where that is installed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from cluster.balancer import balanced
from cluster.load import Caller, ClusterLoad
from cluster.running import RunningCluster, running_cluster
from duly import Duly
from system.rounds import Acknowledged, Report, check, pages, rest
from system.served import PAUSE, until

CLUSTER = ("--shards", "3", "--servicers", "2", "--schedulers", "2", "--workers", "3", "--slots", "2")
LEASE = 5.0  # seconds; of a worker. A scheduler's term is shorter
CLIENTS = 3
PROBES = 9  # jobs that show that work goes on: enough to meet each shard


class Hurt:
    """The cluster with its load; what each fault cost."""

    def __init__(self, cluster: RunningCluster, duly: Duly, loads: list[ClusterLoad]) -> None:
        self.cluster = cluster
        self.duly = duly
        self.loads = loads

    def failed(self) -> list[str]:
        """Calls that the clients gave up so far."""
        return [problem for load in self.loads for problem in load.failed]

    def goes_on(self, what: str) -> None:
        """New jobs are taken and run, on every shard."""
        handles = [self.duly.create(argv=["/bin/true"], schedule="now", name=f"{what} {n}") for n in range(PROBES)]
        ids = {handle.id for handle in handles}

        def over() -> bool:
            states = [self.duly.get(job_id).last_run for job_id in ids]
            return all(run is not None and run.state == "succeeded" for run in states)

        until(over, within=30, what=f"work after {what}")

    def leader(self, shard: str) -> str:
        """The scheduler process that holds the shard's term."""
        for found in self.duly.shards():
            if found.name == shard and found.term is not None:
                return found.term.owner.rpartition("-")[0]
        raise AssertionError(f"nobody leads {shard}")

    @contextlib.contextmanager
    def no_call_fails(self, what: str) -> Iterator[None]:
        """The clients notice nothing."""
        before = len(self.failed())
        yield
        assert self.failed()[before:] == [], f"calls failed when {what}"


@pytest.mark.timeout(240)
def test_nothing_is_lost_or_done_twice_whatever_dies(tmp_path: Path) -> None:
    """SIGKILL of one of each role and of the broker, a shard stopped and started, a scheduler and a worker frozen."""
    marks = tmp_path / "marks"
    marks.mkdir()
    done = Acknowledged()
    loads = [ClusterLoad(number, marks, done) for number in range(CLIENTS)]
    enough = threading.Event()
    with (
        running_cluster(tmp_path / "cluster", *CLUSTER, "--app", "system.marking:app") as cluster,
        balanced(cluster.servicers, tmp_path) as balancer,
    ):
        urls = cluster.servicers
        first = Caller(urls)
        loads[0].start_tickers(first)
        first.close()
        ways = [urls] * CLIENTS if balancer is None else [urls] * (CLIENTS - 1) + [[balancer]]
        threads = [threading.Thread(target=load.go, args=(way, enough)) for load, way in zip(loads, ways, strict=True)]
        for thread in threads:
            thread.start()
        try:
            with Duly(",".join(urls)) as duly:
                hurt_each_part(Hurt(cluster, duly, loads))
        finally:
            enough.set()
            for thread in threads:
                thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        report = Report(seed=0)
        with httpx2.Client(base_url=cluster.url, timeout=30, trust_env=False) as http:
            until(lambda: not one_time_runs_left(http, done), within=60, what="the end of all one-time jobs")
            horizon = rest(http, done)
            check(http, done, marks, horizon, report)
        report.acknowledged = done.writes
        print(report.line())  # noqa: T201 - shown with -rP, and by the soak
        assert report.clean, (report.lost[:5], report.extra[:5], report.double[:5], report.missing[:5])
        assert report.owed > 100
        assert cluster.end() == 0


def one_time_runs_left(http: httpx2.Client, done: Acknowledged) -> bool:
    """Some are still to come, or out."""
    once = {job_id for key, job_id in done.jobs.items() if done.kinds[key] in ("once", "flaky")}
    states = ("waiting", "dispatched", "running")
    return any(run["job_id"] in once for state in states for run in pages(http, "/v1/runs", state=state))


def hurt_each_part(hurt: Hurt) -> None:
    """One fault after the other, and after each of them work goes on."""
    cluster = hurt.cluster
    hurt.goes_on("the start")
    with hurt.no_call_fails("a servicer is killed"):
        cluster.kill("servicer-0")
        hurt.goes_on("the death of a servicer")
    with hurt.no_call_fails("a scheduler is killed"):
        cluster.kill(hurt.leader("s0"))
        hurt.goes_on("the death of a scheduler")
    with hurt.no_call_fails("a worker is killed"):
        cluster.kill("worker-0")
        hurt.goes_on("the death of a worker")
    with hurt.no_call_fails("the broker is killed"):
        cluster.kill("n0")
        hurt.goes_on("the death of the broker")
    with hurt.no_call_fails("a scheduler is frozen"):
        leader = hurt.leader("s1")
        with cluster.frozen(leader):
            until(lambda: hurt.leader("s1") != leader, within=20, what="another scheduler")
            hurt.goes_on("a scheduler froze")
        hurt.goes_on("a scheduler thawed")
    with hurt.no_call_fails("a worker is frozen"):
        with cluster.frozen("worker-1"):
            PAUSE.wait(LEASE + 1.5)
            hurt.goes_on("a worker froze")
        hurt.goes_on("a worker thawed")
    cluster.kill("s0")
    hurt.goes_on("the death of a shard")
    cluster.ask("stop", "s1")
    created = [hurt.duly.create(argv=["/bin/true"], schedule="now", name=f"meanwhile {n}") for n in range(PROBES)]
    until(lambda: len(hurt.duly.runs(state="succeeded", limit=1).items) == 1, what="a list without the shard")
    assert hurt.duly.jobs(q="meanwhile").partial
    doctor = [sys.executable, "-m", "duly.cli", "doctor", "--json", "--server", cluster.url]
    told = json.loads(subprocess.run(doctor, capture_output=True, check=False, timeout=60).stdout)["items"]
    ill = {item["check"]: item["advice"] for item in told if item["status"] == "failed"}
    assert list(ill) == ["shard s1"], told
    assert "database" in ill["shard s1"]
    cluster.ask("start", "s1")
    hurt.goes_on("a shard came back")
    assert len(created) == PROBES
