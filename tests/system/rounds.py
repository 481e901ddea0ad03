"""Crash rounds: `duly up` under load, killed at random moments; afterwards everything owed is matched to what ran.

The checker is in the style of the one for Chronos (https://aphyr.com/posts/326): it computes by itself what each job
owes, and matches every owed occurrence to a distinct completed run, or to a recorded miss where the job's policy
allows one. What the tasks did is taken from the files that they left, not from what the scheduler says of them.

    lost      an owed occurrence without a completed run (or an allowed record), or whose run left no mark
    extra     a run or a mark that nothing owes, an attempt beyond those recorded, a run of what was deleted
    double    one attempt that ran twice; an at-most-once run with two marks; a run in two tables
    missing   an acknowledged create, change, delete or cancel that is not there
"""

from __future__ import annotations

import collections
import os
import random  # noqa: TID251 - seeded: chance is what this test is about
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx2
import msgspec

from duly.core.instants import SECOND, parse_instant
from system.served import PAUSE, Served, until

TESTS = Path(__file__).parent.parent
SCRIPT = """set -C
: > "$1/$DULY_RUN_ID.$DULY_ATTEMPT" || { : >> "$1/$DULY_RUN_ID.$DULY_ATTEMPT.twice"; exit 9; }
[ "$DULY_ATTEMPT" -ge "$2" ]"""
END = ("succeeded", "failed", "cancelled", "skipped", "missed", "lost", "quarantined")
TICKERS: dict[str, dict[str, Any]] = {
    "function, all": {"misfire": "run_all", "overlap": "queue"},
    "command, all": {"misfire": "run_all", "overlap": "allow"},
    "function, latest": {"misfire": "run_latest", "overlap": "skip"},
    "command, none": {"misfire": "skip", "overlap": "allow", "max_lateness": "500ms"},
    "function, at most once": {"misfire": "run_all", "overlap": "allow", "delivery": "at_most_once"},
}
RECORDS = {
    "function, all": set(),
    "command, all": set(),
    "function, latest": {"missed", "skipped"},
    "command, none": {"missed"},
    "function, at most once": {"lost"},
}


class Report(msgspec.Struct):
    """What the checker found."""

    seed: int
    rounds: int = 0
    stillborn: int = 0
    killed_at: list[float] = []
    owed: int = 0
    marks: int = 0
    records: int = 0
    retried: int = 0
    acknowledged: int = 0
    lost: list[str] = []
    extra: list[str] = []
    double: list[str] = []
    missing: list[str] = []

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.lost or self.extra or self.double or self.missing)

    def line(self) -> str:
        """As one line."""
        return (
            f"crash rounds (seed {self.seed}): {self.rounds} kills and {self.stillborn} while starting, "
            f"{self.owed} owed, {self.marks} attempts seen, "
            f"{self.retried} runs retried, {self.records} allowed records, {self.acknowledged} acknowledged; lost "
            f"{len(self.lost)}, extra {len(self.extra)}, double {len(self.double)}, missing {len(self.missing)}"
        )


class Acknowledged:
    """What the server has answered for, and what it may or may not have done."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}  # idempotency key → id
        self.kinds: dict[str, str] = {}  # idempotency key → what the job is for
        self.tickers: dict[str, str] = {}  # name → id
        self.changed: dict[str, int] = {}  # id → the priority last answered for
        self.deleted: set[str] = set()
        self.cancelled: set[str] = set()  # job ids whose run's cancel was answered for
        self.writes = 0


class Load:
    """One client that writes until the server is gone; goes on with what was not answered in the next life."""

    def __init__(self, dice: random.Random, marks: Path, done: Acknowledged) -> None:
        self.dice = dice
        self.marks = str(marks)
        self.done = done
        self.number = 0
        self.open: tuple[str, dict[str, Any]] | None = None  # a create that was not answered

    def task(self, kind: str, need: int = 1) -> dict[str, Any]:
        """A task that marks its attempts."""
        if kind == "function":
            return {"kind": "function", "name": "system.marking:mark", "args": [self.marks, need]}
        return {"kind": "command", "argv": ["/bin/sh", "-c", SCRIPT, "sh", self.marks, str(need)]}

    def run(self, url: str, gone: threading.Event) -> None:
        """Write until `gone` or the connection breaks."""
        with httpx2.Client(base_url=url, timeout=10) as http:
            try:
                self.start_tickers(http)
                while not gone.is_set():
                    self.one(http)
                    gone.wait(0.01)
            except httpx2.TransportError:
                return

    def start_tickers(self, http: httpx2.Client) -> None:
        """The recurring jobs, once; by key, so that asking again is harmless."""
        for name, policy in TICKERS.items():
            if name not in self.done.tickers:
                body = {
                    "task": self.task(name.partition(",")[0]),
                    "schedule": "every 1s",
                    "name": name,
                    "retry": {"max_attempts": 5, "base": "100ms", "backoff": "constant"},
                    "keep": {"runs": 100_000},
                    **policy,
                }
                self.done.tickers[name] = self.create(http, f"ticker {name}", body)

    def create(self, http: httpx2.Client, key: str, body: dict[str, Any]) -> str:
        """Create with a key; returns the id."""
        answer = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key.replace(" ", "-").replace(",", "")})
        assert answer.status_code in (200, 201), answer.text
        self.done.writes += 1
        return str(answer.json()["id"])

    def one(self, http: httpx2.Client) -> None:
        """One write of any kind."""
        done, dice = self.done, self.dice
        if self.open is None:
            self.number += 1
            kind = dice.choice(["once", "once", "once", "flaky", "change", "delete", "cancel"])
            key = f"{kind}-{self.number}"
            need = 2 if kind == "flaky" else 1
            task = self.task(dice.choice(["function", "command"]), need)
            if kind == "cancel":
                task = {"kind": "command", "argv": ["sleep", "600"]}
            schedule = {"delete": "in 1h", "change": "in 1h", "cancel": "in 1h"}.get(
                kind, dice.choice(["now", "in 100ms", "in 1s", "in 3s"])
            )
            body = {
                "task": task,
                "schedule": schedule,
                "name": key,
                "retry": {"max_attempts": 5, "base": "100ms", "backoff": "constant"},
            }
            self.open = (key, body)
        key, body = self.open
        kind = key.partition("-")[0]
        job_id = self.create(http, key, body)
        done.jobs[key], done.kinds[key] = job_id, kind
        self.open = None
        if kind == "change":
            priority = dice.randrange(10)
            answer = http.patch(f"/v1/jobs/{job_id}", json={"priority": priority})
            assert answer.status_code == 200, answer.text
            done.changed[job_id] = priority
            done.writes += 1
        elif kind == "delete":
            answer = http.delete(f"/v1/jobs/{job_id}")
            assert answer.status_code in (200, 204), answer.text
            done.deleted.add(job_id)
            done.writes += 1
        elif kind == "cancel":
            [run] = http.get(f"/v1/jobs/{job_id}/runs").json()["items"]
            answer = http.post(f"/v1/runs/{run['id']}/cancel")
            assert answer.status_code in (200, 202), answer.text
            done.cancelled.add(job_id)
            done.writes += 1


def crash_rounds(folder: Path, rounds: int, seed: int, *, longest: float = 2.5, shards: int = 1) -> Report:
    """Kill the server so many times, let it come to rest, and check."""
    dice = random.Random(seed)
    marks = folder / "marks"
    marks.mkdir()
    report = Report(seed=seed)
    done = Acknowledged()
    load = Load(random.Random(seed + 1), marks, done)
    served = Served(
        folder / "data",
        "--slots",
        "4",
        "--shards",
        str(shards),
        "--app",
        "system.marking:app",
        env={"PYTHONPATH": str(TESTS)},
        cwd=folder,
    )
    try:
        for _ in range(rounds):
            if report.rounds and dice.random() < 0.3:
                stillborn(served, dice.uniform(0.03, 0.5))
                report.stillborn += 1
            served.start().close()
            gone = threading.Event()
            failed: list[BaseException] = []
            writing = threading.Thread(target=_noting, args=(load, served.url, gone, failed))
            writing.start()
            moment = dice.uniform(0.05, longest)
            PAUSE.wait(moment)
            served.kill()
            report.rounds += 1
            report.killed_at.append(round(moment, 3))
            gone.set()
            writing.join()
            if failed:
                raise failed[0]
        served.start().close()
        with httpx2.Client(base_url=served.url, timeout=30) as http:
            load.start_tickers(http)
            horizon = rest(http, done)
            check(http, done, marks, horizon, report)
        status, stderr = served.stop()
        assert status == 0, stderr
        for path in sorted((folder / "data").glob("shard-*.db")):
            check_tables(path, report)
    finally:
        served.kill()
    report.acknowledged = done.writes
    return report


def stillborn(served: Served, after: float) -> None:
    """Kill it while it starts: it may be reading, migrating, recovering, or just have begun to answer."""
    timer = threading.Timer(after, lambda: os.kill(served.pid, signal.SIGKILL))
    timer.start()
    try:
        served.start().close()
    except AssertionError as problem:
        if "Traceback" in str(problem):
            raise
    finally:
        timer.join()
        served.kill()


def _noting(load: Load, url: str, gone: threading.Event, failed: list[BaseException]) -> None:
    try:
        load.run(url, gone)
    except BaseException as problem:  # noqa: BLE001 - told by the main thread
        failed.append(problem)


def pages(http: httpx2.Client, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Every item of a list."""
    cursor: str | None = None
    while True:
        params = {"limit": 1000, **query} | ({} if cursor is None else {"cursor": cursor})
        answer = http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield from page["items"]
        cursor = page.get("next")
        if not cursor:
            return


def rest(http: httpx2.Client, done: Acknowledged) -> int:
    """Wait until all that is owed up to some instant has ended; returns that instant."""
    newest = [parse_instant(run["scheduled_at"]) for run in pages(http, "/v1/runs", state="succeeded")]
    horizon = max(newest, default=0) + SECOND
    held = ("change", "delete", "cancel")

    def ended() -> bool:
        far = {job_id for key, job_id in done.jobs.items() if done.kinds[key] in held}
        for state in ("waiting", "dispatched", "running"):
            for run in pages(http, "/v1/runs", state=state):
                if run["job_id"] not in far and parse_instant(run["scheduled_at"]) <= horizon:
                    return False
        latest = {run["job_id"]: run for run in pages(http, "/v1/runs", state="waiting")}
        return all(
            job_id in latest and parse_instant(latest[job_id]["scheduled_at"]) > horizon
            for job_id in done.tickers.values()
        )

    until(ended, within=60, what="rest")
    return horizon


def check(http: httpx2.Client, done: Acknowledged, marks: Path, horizon: int, report: Report) -> None:
    """Match what is owed to what ran."""
    seen: dict[str, list[int]] = collections.defaultdict(list)
    for path in sorted(marks.iterdir()):
        if path.name.endswith(".twice"):
            report.double.append(path.name)
            continue
        run_id, _, attempt = path.name.rpartition(".")
        seen[run_id].append(int(attempt))
    report.marks = sum(map(len, seen.values()))
    runs = {run["id"]: run for run in pages(http, "/v1/runs")}
    by_job: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for run in runs.values():
        by_job[run["job_id"]].append(run)
    report.retried = sum(run["attempt"] > 1 for run in runs.values())
    for run_id, attempts in seen.items():
        if run_id not in runs:
            report.extra.append(f"{run_id} ran and is not known")
        elif max(attempts) > runs[run_id]["attempt"]:
            report.extra.append(f"{run_id} ran attempt {max(attempts)} of {runs[run_id]['attempt']}")
    for name, job_id in done.tickers.items():
        check_ticker(name, by_job[job_id], seen, horizon, report)
    check_jobs(http, done, by_job, seen, report)


def check_ticker(
    name: str, runs: list[dict[str, Any]], seen: dict[str, list[int]], horizon: int, report: Report
) -> None:
    """An every-second job owes each second from its first to the horizon."""
    at = {parse_instant(run["scheduled_at"]): run for run in runs}
    first = min(at)
    owed = range(first, horizon + 1, SECOND)
    covered = [
        (parse_instant(run["scheduled_at"]), parse_instant(run["covers_until"])) for run in runs if run["covers_until"]
    ]
    report.owed += len(owed)
    for instant in owed:
        run = at.get(instant)
        if run is None:
            if not any(start <= instant <= end for start, end in covered):
                report.lost.append(f"{name}: nothing at {instant}")
        elif run["state"] == "succeeded":
            if run["attempt"] not in seen[run["id"]]:
                report.lost.append(f"{run['id']} succeeded by attempt {run['attempt']} and left {seen[run['id']]}")
        elif run["state"] in RECORDS[name]:
            report.records += 1
            if run["state"] in ("missed", "skipped") and seen[run["id"]]:
                report.extra.append(f"{run['id']} is {run['state']} and ran")
        else:
            report.lost.append(f"{name}: {run['id']} is {run['state']}: {run['reason'] or run['error']}")
        if run is not None and name.endswith("once") and len(seen[run["id"]]) > 1:
            report.double.append(f"{run['id']} is at most once and left {seen[run['id']]}")
    owed_at = set(owed)
    report.extra += [
        f"{name}: {run['id']} is not of its schedule"
        for when, run in at.items()
        if when <= horizon and when not in owed_at
    ]


def check_jobs(
    http: httpx2.Client,
    done: Acknowledged,
    by_job: dict[str, list[dict[str, Any]]],
    seen: dict[str, list[int]],
    report: Report,
) -> None:
    """Each one-time job owes one completed run; deletes, changes and cancels that were answered for hold."""
    jobs = {job["id"]: job for job in pages(http, "/v1/jobs")}
    names = collections.Counter(job["name"] for job in jobs.values())
    report.extra += [f"{n} jobs of the key {name}" for name, n in names.items() if n > 1]
    for key, job_id in done.jobs.items():
        runs, kind = by_job[job_id], done.kinds[key]
        if job_id not in jobs and job_id not in done.deleted:
            answer = http.get(f"/v1/jobs/{job_id}")
            if not (kind == "delete" and answer.status_code in (404, 410)) and kind != "delete":
                report.missing.append(f"{key}: created, and not there ({answer.status_code})")
            continue
        if kind in ("once", "flaky"):
            report.owed += 1
            whole = [run for run in runs if run["state"] == "succeeded"]
            if len(whole) != 1 or len(runs) != 1 or whole[0]["attempt"] not in seen[whole[0]["id"]]:
                report.lost.append(f"{key}: {[(run['state'], run['attempt'], seen[run['id']]) for run in runs]}")
        elif kind == "change" and job_id in done.changed and jobs[job_id]["priority"] != done.changed[job_id]:
            report.missing.append(f"{key}: its priority is not the one that was answered for")
        elif kind == "delete" and job_id in done.deleted:
            if job_id in jobs:
                report.missing.append(f"{key}: deleted, and listed")
            report.extra += [f"{run['id']} ran although deleted" for run in runs if seen[run["id"]]]
        elif kind == "cancel" and job_id in done.cancelled and {run["state"] for run in runs} != {"cancelled"}:
            report.missing.append(f"{key}: cancelled, and {[run['state'] for run in runs]}")


def check_tables(path: Path, report: Report) -> None:
    """The file is whole, and a run is hot or finished, not both."""
    db = apsw.Connection(str(path))
    try:
        assert db.pragma("integrity_check") == "ok"
        both = db.execute("select r.job, r.scheduled from run r join history h using (job, scheduled)").fetchall()
        report.double += [f"{job}@{scheduled} is hot and finished" for job, scheduled in both]
    finally:
        db.close()
