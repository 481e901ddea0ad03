"""`make run`: starts duly here with the examples loaded, and shows what is running, what ran, and how late.

The data stays in ./duly-data, so that a second start goes on where the first one ended. Ctrl-C ends it all.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from duly import Duly
from duly.core.contract import RunView
from duly.core.crontab import parse_crontab
from duly.core.errors import DulyError

HERE = Path(__file__).resolve().parent
DATA = Path("duly-data")
WEATHER = HERE / "data" / "seattle-weather.csv"


def main() -> int:
    """Start, load, watch, stop."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=None, help="end by itself after so long")
    arguments.add_argument("--port", type=int, default=7350)
    chosen = arguments.parse_args()
    console = Console()
    server, url = start(chosen.port)
    if not url:
        return 1
    try:
        with Duly(url) as duly:
            load(duly, console)
            console.print(f"[bold]duly[/bold] is up: open {url} (API at {url}/docs), Ctrl-C ends it\n")
            watch(duly, console, chosen.seconds)
    except KeyboardInterrupt:
        console.print("ending: what runs is finished first")
    except DulyError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    return 0


def start(port: int) -> tuple[subprocess.Popen[str], str]:
    """`duly up` as a process of its own; returns it and its URL, "" if it did not start (it says why itself)."""
    command = [sys.executable, "-m", "duly.cli", "up", "--dir", str(DATA.resolve()), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--app", "app:duly", "--json", "--log-level", "warning"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this program, which ends it in order
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    url = line.partition('"url":')[2].partition('"')[2].partition('"')[0]
    return server, url


def load(duly: Duly, console: Console) -> None:
    """A program and a script over the weather, every minute; and a server's crontab, paused."""
    report = compiled(console)
    inputs = {"seattle-weather.csv": WEATHER}
    keep = {"runs": 100, "for": "1d"}
    report_job = duly.create(
        code=report, schedule="* * * * *", inputs=inputs, name="weather-report", key="weather-report", keep=keep
    )
    plot_job = duly.create(
        code=HERE / "weather" / "plot.py",
        schedule="* * * * *",
        inputs=inputs,
        name="weather-plot",
        key="weather-plot",
        keep=keep,
    )
    for job in (report_job, plot_job):
        duly.trigger(job.id)
    crontab = HERE / "crontab" / "system"
    entries = parse_crontab(crontab.read_text(), identity="examples/crontab/system", system=True).entries
    for entry in entries:  # they are another server's: shown, not run
        options = entry.job(labels={"crontab": "example"})
        duly.create(**options, paused=True, key=entry.key)
    console.print(f"loaded: 2 weather jobs, the functions of app.py, {len(entries)} crontab entries (paused)")


def compiled(console: Console) -> Path:
    """The C program where there is a compiler, else the script that stands in for it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        console.print("no C compiler here: report.sh stands in for report.c")
        return HERE / "weather" / "report.sh"
    program = DATA / "weather-report"
    subprocess.run([compiler, "-O2", "-o", program, HERE / "weather" / "report.c"], check=True)
    return program


def watch(duly: Duly, console: Console, seconds: float | None) -> None:
    """A live page on a terminal; else a line for each run that ended."""
    seen: set[str] = set()
    recent: deque[RunView] = deque(maxlen=12)
    left = seconds
    with (
        Live(console=console, refresh_per_second=4, transient=True)
        if console.is_terminal
        else contextlib.nullcontext() as live
    ):
        while left is None or left > 0:
            ended = duly.runs(state=["succeeded", "failed", "cancelled", "missed", "skipped", "lost"], limit=30).items
            for run in reversed(ended):
                if run.id not in seen:
                    seen.add(run.id)
                    recent.appendleft(run)
                    if live is None:
                        console.print(one_line(run, names(duly, run)))
            if live is not None:
                live.update(page(duly, recent))
            if len(seen) > 10_000:
                seen = {run.id for run in recent}
            select.select([], [], [], 0.5)  # a pause; the page is not the scheduler
            left = None if left is None else left - 0.5


_names: dict[str, str] = {}


def names(duly: Duly, run: RunView) -> str:
    """The name of a run's job."""
    if run.job_id not in _names:
        _names[run.job_id] = duly.get(run.job_id).name
    return _names[run.job_id]


def one_line(run: RunView, name: str) -> str:
    """What ran, how it ended, how late it began."""
    late = "not started" if run.lateness_ms is None else f"{run.lateness_ms:8.3f} ms late"
    files = ", ".join(output.path for output in run.outputs)
    return f"{run.scheduled_at[11:23]}  {name:15} {run.state:10} {late}  attempt {run.attempt}  {files}"


def page(duly: Duly, recent: deque[RunView]) -> Group:
    """Running, due next, ran."""
    stats = duly.stats()
    late = stats.lateness
    head = Text(
        f"{stats.running} running · {stats.waiting} waiting · "
        f"{sum(stats.ended.values())} ended · lateness p50 {late.p50_ms or 0:.2f} ms, "
        f"p99 {late.p99_ms or 0:.2f} ms, max {late.max_ms or 0:.2f} ms, {late.late} past their margin",
        style="bold",
    )
    due = Table(title="due next", title_justify="left", expand=True)
    for column in ("job", "schedule", "next", "last"):
        due.add_column(column)
    jobs = [job for job in duly.jobs(limit=100).items if job.state == "active" and job.next_run_at]
    for job in sorted(jobs, key=lambda job: job.next_run_at or "")[:8]:
        last = (
            f"{job.last_run.state}, {job.last_run.lateness_ms:.3f} ms"
            if job.last_run and job.last_run.lateness_ms is not None
            else ""
        )
        due.add_row(job.name, job.schedule, (job.next_run_at or "")[11:19], last)
    running = Table(title="running now", title_justify="left", expand=True)
    for column in ("job", "since", "attempt", "worker"):
        running.add_column(column)
    for item in duly.running()[:5]:
        for run in item.runs:
            running.add_row(item.job.name, (run.started_at or "")[11:23], str(run.attempt), run.worker or "")
    ran = Table(title="ran", title_justify="left", expand=True)
    for column in ("due", "job", "ended as", "late by", "attempt", "files"):
        ran.add_column(column)
    for run in recent:
        by = "" if run.lateness_ms is None else f"{run.lateness_ms:.3f} ms"
        files = ", ".join(output.path for output in run.outputs)
        ran.add_row(run.scheduled_at[11:23], names(duly, run), run.state, by, str(run.attempt), files)
    return Group(head, running, due, ran)


if __name__ == "__main__":
    sys.exit(main())
