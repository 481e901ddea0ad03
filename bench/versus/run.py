"""duly beside its peers: the same work, alternating, each with its best documented settings. See README.md here.

    python bench/versus/run.py                     everything, about 15 minutes a round
    python bench/versus/run.py --quick --only pgqueuer --only celery
    python bench/versus/run.py --rounds 3 --json figures.json --write docs/comparison.md

Run it with a Python that has duly. Each peer gets an environment of its own in bench/versus/.venv, made here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import servers

HERE: Final = Path(__file__).resolve().parent
ENVIRONMENTS: Final = HERE / ".venv"
LIMIT: Final = 300.0  # seconds for one measurement

Answer = dict[str, Any]


class Entry(NamedTuple):
    """A contestant: its name in the table, and the servers it stands on."""

    title: str
    needs: tuple[str, ...]


BASE: Final = "duly"
CONTESTANTS: Final = {
    "duly": Entry("duly", ()),
    "pgqueuer": Entry("PgQueuer", ("postgres",)),
    "celery": Entry("Celery", ("valkey",)),
    "huey": Entry("Huey", ("valkey",)),
    "apscheduler3": Entry("APScheduler 3", ()),
    "apscheduler4": Entry("APScheduler 4", ("postgres",)),
    "procrastinate": Entry("Procrastinate", ("postgres",)),
}
PEERS: Final = tuple(name for name in CONTESTANTS if name != BASE)
SERVERS: Final = {"postgres": servers.postgres, "valkey": servers.valkey}

FULL: Final = {
    "rate_seconds": 4.0,
    "lateness_seconds": 10,
    "per_second": 100,
    "burst": 1_000,
    "drain": 20_000,
    "tick_seconds": 20,
}
QUICK: Final = {
    "rate_seconds": 1.5,
    "lateness_seconds": 4,
    "per_second": 100,
    "burst": 1_000,
    "drain": 5_000,
    "tick_seconds": 8,
}


class Row(NamedTuple):
    """A line of the table: a figure of a workload, and whether more of it is better."""

    workload: str
    figure: str
    label: str
    more_is_better: bool | None  # None: a count, without a ratio


ROWS: Final = (
    Row("enqueue", "per_second", "enqueue in bulk, jobs/s", True),
    Row("throughput", "per_second", "enqueued, run and outcome stored, jobs/s", True),
    Row("drain", "per_second", "a backlog run and outcomes stored, jobs/s", True),
    Row("lateness", "p50_ms", "100 one-time jobs/s: p50, ms", False),
    Row("lateness", "p99_ms", "100 one-time jobs/s: p99, ms", False),
    Row("lateness", "max_ms", "100 one-time jobs/s: max, ms", False),
    Row("lateness", "early", "100 one-time jobs/s: early starts", None),
    Row("lateness", "most_early_ms", "100 one-time jobs/s: earliest by, ms", None),
    Row("burst", "p50_ms", "1,000 at one instant: p50, ms", False),
    Row("burst", "p99_ms", "1,000 at one instant: p99, ms", False),
    Row("burst", "max_ms", "1,000 at one instant: max, ms", False),
    Row("burst", "early", "1,000 at one instant: early starts", None),
    Row("ticks", "p50_ms", "every-second job: p50, ms", False),
    Row("ticks", "p99_ms", "every-second job: p99, ms", False),
    Row("ticks", "skipped", "every-second job: skipped ticks", None),
    Row("ticks", "twice", "every-second job: ticks run twice", None),
    Row("ticks", "early", "every-second job: early ticks", None),
)
WORKLOADS: Final = tuple(dict.fromkeys(row.workload for row in ROWS))


# -- environments -------------------------------------------------------------------------------------------


def python_of(name: str) -> Path:
    """The Python of a contestant; made, with its pinned packages, when it is missing or they have changed."""
    if name == BASE:
        return Path(sys.executable)
    pins = HERE / f"{name}.txt"
    place = ENVIRONMENTS / name
    python, made_from = place / "bin" / "python", place / "made-from.txt"
    if not made_from.exists() or made_from.read_text() != pins.read_text():
        tell(f"{name}: making its environment")
        venv.create(place, with_pip=True, clear=True)
        install: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            pins,
        ]
        subprocess.run(install, check=True)
        made_from.write_text(pins.read_text())
    return python


def site_of(name: str) -> Path:
    """Where the packages of an environment are."""
    return next((python_of(name).parent.parent / "lib").glob("python3*/site-packages"))


# -- measuring ----------------------------------------------------------------------------------------------


def measure(name: str, workload: str, plan: dict[str, Any]) -> Answer:
    """One contestant, one workload, in a fresh process with fresh servers and a fresh directory."""
    python = python_of(name)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="versus-", ignore_cleanup_errors=True))
        environment = {
            **{key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")},
            "PYTHONPATH": str(HERE),
            "VERSUS_DIR": directory,
        }
        for server in CONTESTANTS[name].needs:
            address = stack.enter_context(SERVERS[server](site_of("servers")))
            environment[f"VERSUS_{server.upper()}"] = address
        command: list[str | Path] = [python, "-m", f"contestants.{name}", workload, json.dumps(plan)]
        started = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            printed, complaints = started.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            started.terminate()
            printed, complaints = started.communicate(timeout=30)
        except BaseException:  # its workers end with it, before its servers and directory go
            started.terminate()
            started.wait(30)
            raise
        if started.returncode:
            logs = [path.read_text(errors="replace")[-1_500:] for path in sorted(Path(directory).glob("worker-*.log"))]
            tell("\n".join([complaints[-3_000:], *logs]))
            last = complaints.strip().splitlines()[-1:] or ["it did not end in time"]
            return {"failed": last[0]}
    answer: Answer = json.loads(printed.splitlines()[-1])
    return answer


def pairs(peers: Sequence[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """duly, A, duly, B, …: each measurement of a peer directly after one of duly on the same work."""
    for number in range(rounds):
        for workload in WORKLOADS:
            for peer in peers:
                yield number, workload, peer


def run(peers: Sequence[str], workloads: Sequence[str], plan: dict[str, Any], rounds: int) -> list[Answer]:
    """All pairs, in order: each {workload, peer, round, base: answer, answer: answer}. Ctrl-C ends it early."""
    found: list[Answer] = []
    for number, workload, peer in pairs(peers, rounds):
        if workload not in workloads:
            continue
        try:
            base, other = measure(BASE, workload, plan), measure(peer, workload, plan)
        except KeyboardInterrupt:
            tell("interrupted: this is what there is so far")
            break
        found.append({"round": number, "workload": workload, "peer": peer, "base": base, "answer": other})
        tell(f"{workload}: duly {brief(base)} | {peer} {brief(other)}")
    return found


def brief(answer: Answer) -> str:
    """An answer in one line, for those who watch."""
    figures = answer.get("figures")
    if figures is None:
        return str(answer.get("not_offered") or f"FAILED: {answer.get('failed')}")
    return " ".join(f"{key}={value:,.6g}" for key, value in figures.items())


def tell(text: str) -> None:
    """To the person who watches."""
    print(text, file=sys.stderr, flush=True)


# -- the table ----------------------------------------------------------------------------------------------


def cells(found: list[Answer], row: Row, peer: str) -> tuple[str, str]:
    """The median of a figure over the rounds, and of its ratio to the duly that ran directly before."""
    own = [pair for pair in found if pair["workload"] == row.workload and pair["peer"] == peer]
    if not own:
        return "", ""
    values = [pair["answer"]["figures"][row.figure] for pair in own if "figures" in pair["answer"]]
    if not values:
        return ("not offered" if "not_offered" in own[0]["answer"] else "failed"), ""
    both = [
        (pair["base"]["figures"][row.figure], pair["answer"]["figures"][row.figure])
        for pair in own
        if "figures" in pair["base"] and "figures" in pair["answer"]
    ]
    return shown(statistics.median(values)), ratio(both, row)


def ratio(both: list[tuple[float, float]], row: Row) -> str:
    """How many times better duly is; a lateness below the resolution of 0.1 ms counts as 0.1 ms."""
    if row.more_is_better is None or not both:
        return ""
    if row.more_is_better:
        factor = statistics.median(base / other for base, other in both)
    else:
        factor = statistics.median(max(other, 0.1) / max(base, 0.1) for base, other in both)
    return f"{factor:,.1f}×" if factor < 100 else f"{factor:,.0f}×"


def base_cell(found: list[Answer], row: Row) -> str:
    """The median of duly's own figure over all its measurements."""
    values = [
        pair["base"]["figures"][row.figure]
        for pair in found
        if pair["workload"] == row.workload and "figures" in pair["base"]
    ]
    return shown(statistics.median(values)) if values else "failed"


def shown(value: float) -> str:
    """Rates without decimals, times with as many as they deserve."""
    if value == int(value) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def versions(found: list[Answer]) -> dict[str, dict[str, str]]:
    """Of the packages of every contestant."""
    told: dict[str, dict[str, str]] = {}
    for pair in found:
        for name, answer in ((BASE, pair["base"]), (pair["peer"], pair["answer"])):
            told.setdefault(name, {}).update(answer.get("versions", {}))
    return told


def table(found: list[Answer], peers: Sequence[str]) -> list[list[str]]:
    """Heading and rows."""
    head = ["what", "duly"]
    for peer in peers:
        head += [CONTESTANTS[peer].title, "duly better by"]
    lines = [head]
    for row in ROWS:
        if any(pair["workload"] == row.workload for pair in found):
            line = [row.label, base_cell(found, row)]
            for peer in peers:
                line += cells(found, row, peer)
            lines.append(line)
    return lines


def aligned(lines: list[list[str]]) -> str:
    """For a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown(lines: list[list[str]]) -> str:
    """For a page: the ratio in brackets behind the figure, to keep it narrow."""
    narrow = [[line[0], line[1], *joined(line)] for line in lines]
    narrow.insert(1, ["---", *["---:"] * (len(narrow[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in narrow)


def joined(line: list[str]) -> Iterator[str]:
    """Figure and ratio in one cell."""
    for value, factor in zip(line[2::2], line[3::2], strict=True):
        yield f"{value} ({factor})" if factor and factor != "duly better by" else value


def reasons(found: list[Answer]) -> list[str]:
    """Why something is not in the table."""
    told: dict[str, None] = {}
    for pair in found:
        for name, answer in ((BASE, pair["base"]), (pair["peer"], pair["answer"])):
            if "not_offered" in answer:
                told[f"{CONTESTANTS[name].title}, {pair['workload']}: not offered. {answer['not_offered']}"] = None
            elif "failed" in answer:
                told[f"{CONTESTANTS[name].title}, {pair['workload']}: failed. {answer['failed']}"] = None
            elif answer["figures"].get("outcomes_stored") is False:
                told[f"{CONTESTANTS[name].title}, {pair['workload']}: measured without outcomes; none are kept."] = None
    return list(told)


def machine() -> str:
    """Where it was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}"


def page(found: list[Answer], peers: Sequence[str], command: str, load: tuple[float, float]) -> str:
    """docs/comparison.md."""
    kept = versions(found)
    listed = [
        f"- {CONTESTANTS[name].title}: " + ", ".join(f"{package} {number}" for package, number in kept[name].items())
        for name in (BASE, *peers)
    ]
    pins = " ".join(line for line in (HERE / "servers.txt").read_text().split("\n") if line and line[0] != "#")
    notes = [f"- {reason}" for reason in reasons(found)]
    introduction = (
        f"Written by `{command}` on {dt.datetime.now(dt.UTC):%Y-%m-%d}: {machine()}; load average {load[0]:.1f} before "
        f"and {load[1]:.1f} after. What is measured, with which settings and why, and how to read it: "
        "[bench/versus/README.md](../bench/versus/README.md). Figures are medians of the rounds; in brackets, how many "
        "times better the duly was that ran directly before (below 1: worse). Other machines give other figures: "
        "compare within a row, and run it on yours."
    )
    return "\n".join(
        [
            "# duly beside its peers, measured",
            "",
            introduction,
            "",
            markdown(table(found, peers)),
            "",
            *notes,
            *([""] if notes else []),
            "Versions:",
            "",
            *listed,
            f"- servers: {pins}",
            "",
        ]
    )


# -- the command line ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a measurement failed."""
    parser = argparse.ArgumentParser(description="duly beside its peers", epilog="see README.md beside this file")
    parser.add_argument("--only", action="append", choices=PEERS, help="this peer; repeat for several")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="this workload; repeat for several")
    parser.add_argument("--quick", action="store_true", help="short measurements, about 5 minutes in all")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured (default 1)")
    parser.add_argument("--json", type=Path, help="write every single answer to this file")
    parser.add_argument("--write", type=Path, help="write the table as a page, such as docs/comparison.md")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # by way of every `finally`
    peers = tuple(name for name in PEERS if not options.only or name in options.only)
    workloads = tuple(name for name in WORKLOADS if not options.workload or name in options.workload)
    for name in (*peers, "servers"):
        python_of(name)
    before = os.getloadavg()[0]
    started = time.monotonic()
    found = run(peers, workloads, QUICK if options.quick else FULL, options.rounds)
    load = (before, os.getloadavg()[0])
    command = shlex.join(["python", "bench/versus/run.py", *(sys.argv[1:] if arguments is None else arguments)])
    if options.json:
        document = {"command": command, "machine": machine(), "load": load, "versions": versions(found)}
        options.json.write_text(json.dumps({**document, "pairs": found}, indent=1) + "\n")
    if options.write:
        options.write.write_text(page(found, peers, command, load))
    print(f"{machine()}; load {load[0]:.1f} → {load[1]:.1f}; {time.monotonic() - started:.0f} s")
    print(aligned(table(found, peers)))
    for reason in reasons(found):
        print(reason)
    for name, told in versions(found).items():
        print(f"{name}: {', '.join(f'{package} {number}' for package, number in told.items())}")
    return int(any("failed" in pair[side] for pair in found for side in ("base", "answer")))


if __name__ == "__main__":
    sys.exit(main())
