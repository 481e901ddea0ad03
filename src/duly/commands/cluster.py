"""`duly cluster`: a whole cluster on this machine, and what can be asked of one that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.settings_flags import Apps, Directory, Functions, Host, LogLevel, SettingsFile
from duly.commands.terminal import note, put, put_json, table

if TYPE_CHECKING:
    from duly.cluster.cluster import Plan
    from duly.settings import Settings

_PLAIN = Output()
DIRECTORY = "duly-cluster"

Member = Annotated[str, Parameter(help="Its name, as `duly member list` shows it: s0, n0, servicer-0, worker-1 …")]


def run(
    *,
    dir_: Directory = None,
    shards: Annotated[int, Parameter(help="PostgreSQL servers; fixed when the directory is made.")] = 3,
    servicers: Annotated[int, Parameter(help="API servers behind the one URL.")] = 2,
    schedulers: Annotated[int, Parameter(help="Scheduler processes.")] = 2,
    workers: Annotated[int, Parameter(help="Worker processes.")] = 4,
    nats: Annotated[Literal[1, 3], Parameter(help="NATS servers.")] = 1,
    standbys: Annotated[Literal[0, 1], Parameter(help="PostgreSQL servers that follow each shard's.")] = 0,
    host: Host = None,
    port: Annotated[int | None, Parameter(help="Port of the one URL; 0 takes a free one.")] = None,
    slots: Annotated[int | None, Parameter(help="Runs in processes at once, per worker.")] = None,
    app: Apps = (),
    functions: Functions = None,
    log_level: LogLevel = None,
    config: SettingsFile = None,
    output: Output = _PLAIN,
) -> None:
    """Run a cluster on this machine until SIGTERM or Ctrl-C; started again, it picks its data up."""
    from duly.boot.serving import run as run_loop
    from duly.cluster.cluster import Plan
    from duly.log_output import configure
    from duly.settings import load

    flags = {
        "host": host,
        "port": port,
        "slots": slots,
        "app": list(app) or None,
        "functions": functions,
        "log_level": log_level,
    }
    settings = load(flags, path=config).settings
    plan = Plan(
        shards=shards, servicers=servicers, schedulers=schedulers, workers=workers, nats=nats, standbys=standbys
    )
    configure(settings.log_level, settings.log_format)
    run_loop(_run(plan, settings, dir_ or Path(DIRECTORY), output))


async def _run(plan: Plan, settings: Settings, directory: Path, output: Output) -> None:
    import asyncio

    from duly.adapters.system_clock import SystemClock
    from duly.boot.serving import signals
    from duly.cluster.cluster import running

    clock = SystemClock()
    asked = asyncio.Event()
    began = clock.monotonic()
    with signals(asked):
        async with running(plan, settings, directory, clock=clock, asked=asked) as cluster:
            if cluster is None:
                return  # an end was asked for before it was ready
            took = (clock.monotonic() - began) / 1e6

            def started() -> None:
                if output.json:
                    put_json({"url": cluster.url, "servicers": cluster.servicers, "ready_s": round(took, 2)})
                else:
                    put(f"duly {cluster.url}  (ready in {took:.1f} s, data and logs in {directory}; Ctrl-C ends it)")
                sys.stdout.flush()

            await cluster.watch(asked, started)
            note("stopping")


def list_members(*, dir_: Directory = None, output: Output = _PLAIN) -> None:
    """Show what runs in the cluster of a directory."""
    _ask("status", "", dir_, output)


def stop(name: Member, /, *, dir_: Directory = None, output: Output = _PLAIN) -> None:
    """Stop one process of the cluster, until it is started again."""
    _ask("stop", name, dir_, output)


def start(name: Member, /, *, dir_: Directory = None, output: Output = _PLAIN) -> None:
    """Start a stopped process again."""
    _ask("start", name, dir_, output)


def kill(name: Member, /, *, dir_: Directory = None, output: Output = _PLAIN) -> None:
    """Kill a process, as a crash would; the cluster starts it again."""
    _ask("kill", name, dir_, output)


def promote(
    name: Annotated[str, Parameter(help="The shard.")], /, *, dir_: Directory = None, output: Output = _PLAIN
) -> None:
    """Let a shard's standby lead; what led becomes its standby."""
    _ask("promote", name, dir_, output)


def _ask(what: str, name: str, directory: Path | None, output: Output) -> None:
    import asyncio

    from duly.cluster.control import ask
    from duly.cluster.home import Home

    told: dict[str, Any] = asyncio.run(ask(Home(directory or Path(DIRECTORY)).control, {"do": what, "name": name}))
    if output.json:
        put_json(told)
        return
    put(f"{told['url']}  (pid {told['pid']})")
    for shard in told["shards"]:
        put(f"{shard['name']}: led by {shard['leader']}, standby: {shard['standby']}")
    rows = [(one["name"], one["state"], one["pid"] or "", one["restarts"], one["url"] or "") for one in told["members"]]
    table(("NAME", "STATE", "PID", "RESTARTS", "URL"), rows)
