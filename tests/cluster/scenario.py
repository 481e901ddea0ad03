"""A real cluster under load, and the death, the pause and the loss of each of its parts, one after the other.

Afterwards everything that is owed is matched to what ran, by the checker of the crash rounds. Not one call of the
load may fail but for a shard that is down: the clients go to another servicer by themselves, and one of them goes
through HAProxy, where that is installed.
"""

from __future__ import annotations

import contextlib
import itertools
import random  # noqa: TID251 - seeded: chance is what this test is about
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from cluster.balancer import balanced
from cluster.load import Caller, ClusterLoad
from cluster.running import RunningCluster, running_cluster
from duly import Duly
from duly.core.contract import JobView
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
        self._loads = loads
        self._probes = itertools.count(1)

    def failed(self) -> list[str]:
        """Calls that the clients gave up so far."""
        return [problem for load in self._loads for problem in load.failed]

    def goes_on(self, what: str) -> None:
        """New jobs are taken and run, on every shard."""
        jobs = self.new_jobs()

        def over() -> bool:
            runs = [self.duly.get(job.id).last_run for job in jobs]
            return all(run is not None and run.state == "succeeded" for run in runs)

        until(over, within=30, what=f"work after {what}")

    def new_jobs(self) -> list[JobView]:
        """Jobs without a key, which find a shard that lives."""
        names = [f"probe {next(self._probes)}" for _ in range(PROBES)]
        return [self.duly.create(argv=["/bin/true"], schedule="now", name=name) for name in names]

    def leader(self, shard: str) -> str:
        """The scheduler process that holds the shard's term."""
        for found in self.duly.shards():
            if found.name == shard and found.term is not None:
                return found.term.owner.rpartition("-")[0]
        raise AssertionError(f"nobody leads {shard}")


def a_servicer_is_killed(hurt: Hurt) -> None:
    """SIGKILL."""
    hurt.cluster.kill("servicer-0")


def a_scheduler_is_killed(hurt: Hurt) -> None:
    """SIGKILL of one that leads."""
    hurt.cluster.kill(hurt.leader("s0"))


def a_worker_is_killed(hurt: Hurt) -> None:
    """SIGKILL."""
    hurt.cluster.kill("worker-0")


def the_broker_is_killed(hurt: Hurt) -> None:
    """SIGKILL; it comes back empty."""
    hurt.cluster.kill("n0")


def the_broker_is_away(hurt: Hurt) -> None:
    """Stopped, for longer than a worker's lease: workers go by the servicers meanwhile."""
    hurt.cluster.ask("stop", "n0")
    PAUSE.wait(LEASE + 1.5)
    hurt.goes_on("the broker went away")
    hurt.cluster.ask("start", "n0")


def a_scheduler_is_frozen(hurt: Hurt) -> None:
    """SIGSTOP until another leads."""
    leader = hurt.leader("s1")
    with hurt.cluster.frozen(leader):
        until(lambda: hurt.leader("s1") != leader, within=20, what="another scheduler")
        hurt.goes_on("a scheduler froze")


def a_worker_is_frozen(hurt: Hurt) -> None:
    """SIGSTOP past its lease."""
    with hurt.cluster.frozen("worker-1"):
        PAUSE.wait(LEASE + 1.5)
        hurt.goes_on("a worker froze")


def a_shard_is_killed(hurt: Hurt) -> None:
    """SIGKILL of its PostgreSQL, which recovers."""
    hurt.cluster.kill("s0")


def a_shard_is_stopped(hurt: Hurt) -> None:
    """New jobs go to the others, and lists say that they are partial."""
    hurt.cluster.ask("stop", "s1")
    assert len(hurt.new_jobs()) == PROBES
    assert hurt.duly.jobs().partial
    hurt.cluster.ask("start", "s1")


FAULTS: tuple[tuple[Callable[[Hurt], None], bool], ...] = (  # and whether a client may notice
    (a_servicer_is_killed, False),
    (a_scheduler_is_killed, False),
    (a_worker_is_killed, False),
    (the_broker_is_killed, False),
    (the_broker_is_away, False),
    (a_scheduler_is_frozen, False),
    (a_worker_is_frozen, False),
    (a_shard_is_killed, True),
    (a_shard_is_stopped, True),
)


def under_faults(folder: Path, *, seed: int = 0, passes: int = 1) -> Report:
    """Every fault, so many times, in another order each time but the first; what the checker finds afterwards."""
    marks = folder / "marks"
    marks.mkdir()
    done = Acknowledged()
    dice = random.Random(seed)
    loads = [ClusterLoad(seed * CLIENTS + number, marks, done) for number in range(CLIENTS)]
    with (
        running_cluster(folder / "cluster", *CLUSTER, "--app", "system.marking:app") as cluster,
        balanced(cluster.servicers, folder) as balancer,
    ):
        urls = cluster.servicers
        ways = [urls] * CLIENTS if balancer is None else [urls] * (CLIENTS - 1) + [[balancer]]
        with loading(loads, ways), Duly(",".join(urls)) as duly:
            hurt = Hurt(cluster, duly, loads)
            hurt.goes_on("the start")
            for number in range(passes):
                faults = list(FAULTS)
                if number:
                    dice.shuffle(faults)
                for fault, noticed in faults:
                    inflict(fault, noticed, hurt)
        report = Report(seed=seed)
        with httpx2.Client(base_url=cluster.url, timeout=30, trust_env=False) as http:
            until(lambda: not one_time_runs_left(http, done), within=60, what="the end of all one-time jobs")
            check(http, done, marks, rest(http, done), report)
        report.acknowledged = done.writes
        assert cluster.end() == 0
    return report


def inflict(fault: Callable[[Hurt], None], noticed: bool, hurt: Hurt) -> None:
    """The fault, and that work goes on after it."""
    what = fault.__name__.replace("_", " ")
    before = len(hurt.failed())
    fault(hurt)
    hurt.goes_on(what)
    assert noticed or hurt.failed()[before:] == [], f"calls failed when {what}: {hurt.failed()[before:]}"


@contextlib.contextmanager
def loading(loads: list[ClusterLoad], ways: list[list[str]]) -> Iterator[None]:
    """The load, until the block ends and all that it has begun is answered."""
    first = Caller(ways[0])
    loads[0].start_tickers(first)
    first.close()
    enough = threading.Event()
    threads = [threading.Thread(target=load.go, args=(way, enough)) for load, way in zip(loads, ways, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def one_time_runs_left(http: httpx2.Client, done: Acknowledged) -> bool:
    """Some are still to come, or out."""
    once = {job_id for key, job_id in done.jobs.items() if done.kinds[key] in ("once", "flaky")}
    states = ("waiting", "dispatched", "running")
    return any(run["job_id"] in once for state in states for run in pages(http, "/v1/runs", state=state))
