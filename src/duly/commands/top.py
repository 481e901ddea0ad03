"""`duly top`: what runs, what is due, what was late, and who works, as it changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from duly.commands.connection import Connection
from duly.commands.shown import plain
from duly.commands.terminal import milliseconds, put, put_json, table
from duly.core.contract import RunView, ShardView, StatsView, WorkerView
from duly.core.errors import InvalidInput, NotFound, Overloaded, Unavailable
from duly.core.instants import (
    MILLISECOND,
    MINUTE,
    SECOND,
    format_duration,
    format_instant,
    parse_duration,
    parse_instant,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from duly.faces.client import Client

_HERE: Final = Connection()
NAMES: Final = 5_000  # of jobs, remembered
ROWS: Final = 10  # in a snapshot that is no terminal's
WIDE: Final = frozenset({"NAME", "RUN", "WORKER"})
HEADS: Final = 14  # lines of a screen that are no rows

Row = tuple[str, ...]


class Line(msgspec.Struct, frozen=True):
    """A run with its job's name."""

    job: str
    run: RunView


class Snapshot(msgspec.Struct, frozen=True):
    """One look at the whole."""

    at: str
    stats: StatsView
    running: list[Line]
    due: list[Line]  # waiting, in the order of their times; first those whose time has come
    overdue: int  # of them: whose time has come
    late: list[Line]
    workers: list[WorkerView]
    shards: list[ShardView]


def top(
    *,
    every: Annotated[str, Parameter(help="How often to look, as 2s.")] = "1s",
    rows: Annotated[int | None, Parameter(help="Runs of each kind; as many as fit the terminal by default.")] = None,
    connection: Connection = _HERE,
) -> int:
    """Show what runs, what is due, what was late, and the workers, until Ctrl-C; one look where no terminal is."""
    pause = parse_duration(every, pointer="/every")
    if not 100 * MILLISECOND <= pause <= MINUTE:
        raise InvalidInput.at("/every", "is from 100ms to 1m")
    if rows is not None and not 1 <= rows <= 200:
        raise InvalidInput.at("/rows", "is from 1 to 200")
    with connection.client() as client:
        look = _Look(client)
        if connection.json:
            put_json(look.take(rows or ROWS))
        elif not sys.stdout.isatty():
            _print(look.take(rows or ROWS))
        else:
            _watch(client, look, pause, rows)
    return 0


class _Look:
    """Asks, and remembers the names of jobs."""

    def __init__(self, client: Client) -> None:
        from duly.adapters.system_clock import SystemClock

        self._client = client
        self.clock = SystemClock()
        self._names: dict[str, str] = {}

    def take(self, rows: int) -> Snapshot:
        """One look, by the server's clock to the second. Raises what the client raises."""
        from duly.faces.http_transport import HttpTransport

        client = self._client
        transport = client.aio.transport
        theirs = client.thread.wait(transport.server_time()) if isinstance(transport, HttpTransport) else None
        now = self.clock.wall() if theirs is None else int(theirs * SECOND)
        due = client.runs(state="waiting", order="scheduled", limit=rows).items
        running = client.runs(state="running", limit=rows).items
        late = client.runs(late=True, limit=rows).items
        return Snapshot(
            at=format_instant(now),
            stats=client.stats(),
            running=self._lines(running),
            due=self._lines(due),
            overdue=sum(parse_instant(run.due_at) <= now for run in due),
            late=self._lines(late),
            workers=client.workers(),
            shards=client.shards(),
        )

    def _lines(self, runs: Sequence[RunView]) -> list[Line]:
        return [Line(self._name(run.job_id), run) for run in runs]

    def _name(self, job_id: str) -> str:
        if job_id not in self._names:
            if len(self._names) >= NAMES:
                self._names.clear()
            try:
                self._names[job_id] = self._client.get(job_id).name or job_id
            except NotFound:
                return job_id  # its history is going this very moment
        return self._names[job_id]


def _headline(shot: Snapshot) -> str:
    stats, lateness = shot.stats, shot.stats.lateness
    failed = sum(stats.ended.get(state, 0) for state in ("failed", "lost", "quarantined"))
    words = [
        f"{stats.running:,} running",
        f"{stats.waiting:,} waiting" + (f", {shot.overdue:,} past their time" if shot.overdue else ""),
        f"{stats.ended.get('succeeded', 0):,} succeeded",
        f"{failed:,} failed",
        f"{stats.ended.get('missed', 0):,} missed",
        f"late: {lateness.late:,} of {lateness.count:,}, p99 {milliseconds(lateness.p99_ms) or '-'}",
    ]
    return " · ".join(words)


def _trouble(shot: Snapshot) -> list[str]:
    """What an operator should see first."""
    found = [f"shard {name} does not answer" for name in shot.stats.missing_shards]
    now = parse_instant(shot.at)
    found += [
        f"shard {shard.name} has no scheduler"
        for shard in shot.shards
        if shard.state == "up" and (shard.term is None or parse_instant(shard.term.expires_at) < now - 2 * SECOND)
    ]
    if not any(worker.state == "ready" for worker in shot.workers):
        found.append("no worker is ready")
    return found


def _tables(shot: Snapshot) -> list[tuple[str, Row, list[Row]]]:
    """Title, headings and cells of each."""
    now = parse_instant(shot.at)
    running: list[Row] = [
        (one.job, _since(one.run.started_at, now), str(one.run.attempt), one.run.worker or "", one.run.id)
        for one in shot.running
    ]
    due: list[Row] = [(one.job, _until(one.run.due_at, now), str(one.run.priority), one.run.id) for one in shot.due]
    late: list[Row] = [
        (one.job, milliseconds(one.run.lateness_ms), one.run.late_cause or "", one.run.state, one.run.id)
        for one in shot.late
    ]
    workers: list[Row] = [
        (worker.id, worker.state, f"{worker.slots - worker.free}/{worker.slots}", f"{worker.clock_offset_ms:+.1f} ms")
        for worker in shot.workers
    ]
    return [
        ("RUNNING", ("NAME", "FOR", "TRY", "WORKER", "RUN"), running),
        ("NEXT", ("NAME", "DUE", "PRIORITY", "RUN"), due),
        ("LATE", ("NAME", "LATENESS", "CAUSE", "STATE", "RUN"), late),
        ("WORKERS", ("WORKER", "STATE", "BUSY", "CLOCK"), workers),
    ]


def _print(shot: Snapshot) -> None:
    put(_headline(shot))
    for trouble in _trouble(shot):
        put(f"! {trouble}")
    for title, heads, cells in _tables(shot):
        put("")
        put(title)
        table(heads, cells)


def _watch(client: Client, look: _Look, pause: int, rows: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    last: Snapshot | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                problem = ""
                room = rows or max(2, (console.height - HEADS) // 4)
                try:
                    last = look.take(room)
                except (Unavailable, Overloaded) as error:
                    if last is None:
                        raise
                    problem = f"{error.detail}; trying again"
                live.update(_screen(last, problem, client), refresh=True)
                client.thread.wait(look.clock.sleep(pause))
    except KeyboardInterrupt:
        return


def _screen(shot: Snapshot, problem: str, client: Client) -> RenderableType:
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    parts: list[Any] = [Text(f"duly top   {shot.at[:19]}Z   Ctrl-C ends", style="bold"), Text(_headline(shot))]
    parts += [Text(f"! {trouble}", style="bold red") for trouble in ([problem] if problem else []) + _trouble(shot)]
    for title, heads, cells in _tables(shot):
        shown = Table(
            *(Column(name, no_wrap=True, overflow="ellipsis", ratio=3 if name in WIDE else 1) for name in heads),
            box=None, expand=True, pad_edge=False, title=title, title_justify="left", title_style="bold",
        )  # fmt: skip
        for row in cells:
            shown.add_row(*(Text(plain(cell)) for cell in row))
        if not cells:
            shown.add_row(Text("-", style="dim"))
        parts += [Text(""), shown]
    return Group(*parts)


def _since(text: str | None, now: int) -> str:
    return "" if text is None else _span(max(0, now - parse_instant(text)))


def _until(text: str, now: int) -> str:
    left = parse_instant(text) - now
    return f"in {_span(left)}" if left > 0 else f"{_span(-left)} ago"


def _span(duration: int) -> str:
    """A duration to the tenth of a second, or to the second beyond a minute."""
    step = 100 * MILLISECOND if duration < MINUTE else SECOND
    return format_duration(duration // step * step)
