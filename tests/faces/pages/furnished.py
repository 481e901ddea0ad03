"""A directory with jobs and hours of history in it, and a real `duly up` over it: what the pages' tests look at.

The history is written through the store, as runs that have ended; everything from then on is really run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random  # noqa: TID251 - the history is drawn from a seed
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.core import policy
from duly.core.contract import CommandSpec, FunctionSpec, JobSpec, TaskSpec
from duly.core.definition import define_job
from duly.core.instants import DAY, HOUR, MILLISECOND, MINUTE, SECOND
from duly.core.job_ids import mint_job_id
from duly.core.model import Attempt, Failure, Job, Run, RunState, WorkerId

APPS = Path(__file__).parent / "apps"
WORKERS = (WorkerId("w-cellar"), WorkerId("w-attic"))


def _function(name: str, **kwargs: Any) -> FunctionSpec:
    return FunctionSpec(name=f"bookshop:{name}", kwargs=kwargs)


_REPORT = """printf 'reading orders\\n'; printf '\\033[33mwarning:\\033[0m 2 orders have no address\\n' >&2
printf 'country,orders,total\\nDE,41,1204.50\\nFR,17,402.00\\nJP,9,377.20\\n' > output/orders.csv
printf 'All is well.\\n67 orders, 1983.70 in all.\\n' > output/summary.txt
printf 'done\\n'"""

_SHOP, _BILLING, _OPS = {"team": "shop"}, {"team": "billing"}, {"team": "ops"}
_PLAN: tuple[tuple[str, TaskSpec, str, dict[str, Any], str], ...] = (
    ("invoice-mailer", _function("tick"), "* * * * *", {"labels": _BILLING, "max_lateness": "250ms"}, "good"),
    ("stock-sync", _function("slow", seconds=0.4), "* * * * *", {"labels": _SHOP}, "near"),
    ("price-feed", _function("tick"), "*/2 * * * *", {"labels": _SHOP, "max_lateness": "100ms"}, "late"),
    ("search-index", _function("slow", seconds=2.5), "*/5 * * * *", {"labels": {"team": "search"}}, "good"),
    ("nightly-backup", CommandSpec(argv=["true"]), "0 2 * * *", {"timezone": "Europe/Berlin", "labels": _OPS}, "none"),
    ("order-report", CommandSpec(argv=["sh", "-c", _REPORT]), "*/15 * * * *", {"labels": _BILLING}, "good"),
    ("customer-export", _function("broken"), "*/10 * * * *", {"labels": _BILLING, "retry": {"max_attempts": 1}}, "bad"),
    ("ledger-close", _function("broken", invoice=88), "30 * * * *", {"retry": {"max_attempts": 2}}, "bad"),
    ("cache-warmer", _function("tick"), "every 30s", {"labels": _SHOP}, "good"),
    ("heartbeat", _function("tick"), "*/20 * * * * *", {"labels": _OPS, "max_lateness": "50ms"}, "good"),
    ("thumbnail-batch", _function("slow", seconds=6), "*/3 * * * *", {"labels": _SHOP}, "busy"),
    ("fraud-scan", _function("tick"), "*/4 * * * *", {"labels": {"team": "risk"}, "priority": 8}, "missed"),
    ("old-import", CommandSpec(argv=["true"]), "@hourly", {"labels": _OPS, "paused": True}, "none"),
    ("newsletter", _function("tick"), "0 9 * * 1", {"timezone": "Europe/Paris", "labels": _SHOP}, "none"),
)


def furnish(directory: Path, *, hours: int = 3, seed: int = 7, jobs: int = 0, runs: int = 0) -> list[Job]:
    """Write the plan's jobs and their history; then `jobs` further ones with `runs` further runs between them."""
    directory.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_furnish(directory, hours, random.Random(seed), jobs, runs))


def furnish_apart(directory: Path, *options: str) -> None:
    """The same in a process of its own: a test with a browser has a running event loop already."""
    subprocess.run([sys.executable, __file__, str(directory), *options], check=True)


async def _furnish(directory: Path, hours: int, dice: random.Random, more: int, runs: int) -> list[Job]:
    clock = SystemClock()
    store = SqliteStore(directory / "shard-s0.db", shard="s0", clock=clock)
    await store.migrate()
    now = await store.now()
    made = []
    for name, task, schedule, options, habit in _PLAN:
        job_id = mint_job_id(now - 20 * DAY, dice.randbytes(10))
        spec = msgspec.convert(
            {"schedule": schedule, **options, "task": msgspec.to_builtins(task), "name": name}, JobSpec
        )
        job = define_job(spec, job_id=job_id, now=now - 20 * DAY)
        made.append(job)
        past = _past(job, habit, now - hours * HOUR, now, dice)
        coming = [policy.first_run(job, now, 1)] if job.state == "active" else []
        await store.create([(job, [*past, *(run for run in coming if run is not None)])])
    each = runs // more if more else 0
    for first in range(0, more, 100):
        pairs: list[tuple[Job, Sequence[Run]]] = []
        for number in range(first, min(first + 100, more)):
            spec = JobSpec(
                task=_function("tick"), schedule=f"{number % 60} {number % 24} * * *", name=f"job-{number:05}"
            )
            job = define_job(spec, job_id=mint_job_id(now - 30 * DAY + number, dice.randbytes(10)), now=now - 30 * DAY)
            past = [
                _ended(job, now - (place + 1) * (DAY * 2 // max(1, each)) - number * 7, 900, dice)
                for place in range(each)
            ]
            coming = policy.first_run(job, now, 1)
            pairs.append((job, [*past, *([] if coming is None else [coming])]))
        await store.create(pairs)
    await store.close()
    return made


def _past(job: Job, habit: str, start: int, now: int, dice: random.Random) -> list[Run]:
    if habit == "none":
        return []
    schedule = policy.schedule_of(job)
    found = []
    for at in schedule.between(start, now - 30 * SECOND, 5_000):
        age = (now - at) / MINUTE
        if habit == "missed" and 22 < age < 31:
            found.append(
                Run(job_id=job.id, scheduled_at=at, due_at=at, state=RunState.MISSED, finished_at=at + MINUTE,
                    reason="duly was not running")
            )  # fmt: skip
            continue
        lateness = int(math.exp(dice.gauss(math.log(1_500), 0.8)))
        if habit == "near":
            lateness = int(math.exp(dice.gauss(math.log(250_000), 0.7)))
        if habit == "late" and 34 < age < 47:
            lateness = int(dice.uniform(120, 1800)) * MILLISECOND
        if habit == "busy" and dice.random() < 0.3:
            lateness = int(dice.uniform(0.7, 2.4) * SECOND)
        found.append(_ended(job, at, lateness, dice, fails=habit == "bad" and dice.random() < 0.6))
    return found


def _ended(job: Job, at: int, lateness: int, dice: random.Random, *, fails: bool = False) -> Run:
    late = lateness > job.max_lateness
    started = at + lateness
    finished = started + int(dice.uniform(0.05, 3) * SECOND)
    worker = WORKERS[at // MINUTE % 2]
    number = int(dice.uniform(1000, 9999))
    message = f"ValueError: invoice {number} has no customer (looked in /srv/books/{number}.json)"
    error = Failure(kind="exception", message=message, detail="Traceback (most recent call last): …") if fails else None
    tried: tuple[Attempt, ...] = ()
    if fails and job.retry.max_attempts > 1:
        tried = (
            Attempt(number=1, worker=WORKERS[0], state="failed", dispatched_at=at - SECOND, started_at=started,
                    finished_at=finished, error=error),
        )  # fmt: skip
        started, finished, worker = finished + 20 * SECOND, finished + 26 * SECOND, WORKERS[1]
    return Run(
        job_id=job.id,
        scheduled_at=at,
        due_at=at,
        state=RunState.FAILED if fails else RunState.SUCCEEDED,
        attempt=len(tried) + 1,
        attempts=tried,
        worker=worker,
        dispatched_at=at - SECOND,
        started_at=started,
        finished_at=finished,
        lateness=lateness,
        late=late,
        late_cause=("no_capacity" if dice.random() < 0.7 else "overlap") if late else None,
        error=error,
    )


@contextmanager
def running(directory: Path, *options: str, slots: int = 4) -> Iterator[str]:
    """A `duly up` over the directory; its URL. It is stopped as an operator would."""
    command = [sys.executable, "-m", "duly.cli", "up", "--json", "--port", "0", "--dir", str(directory)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--app", "bookshop:duly", "--slots", str(slots), "--log-level", "warning", *options],
            cwd=APPS,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    with process.stdout as out:
        line = out.readline()
        if not line:
            process.wait(20)
            raise AssertionError((directory / "server.log").read_text())
        try:
            yield msgspec.json.decode(line)["url"]
        finally:
            process.terminate()
            status = process.wait(30)
    assert status == 0, (directory / "server.log").read_text()


def main() -> None:
    """`python tests/faces/pages/furnished.py DIRECTORY [--hours H] [--jobs N] [--runs N]`."""
    asked = argparse.ArgumentParser(description=main.__doc__)
    asked.add_argument("directory", type=Path)
    asked.add_argument("--hours", type=int, default=3)
    asked.add_argument("--jobs", type=int, default=0)
    asked.add_argument("--runs", type=int, default=0)
    given = asked.parse_args()
    furnish(given.directory, hours=given.hours, jobs=given.jobs, runs=given.runs)


if __name__ == "__main__":
    main()
