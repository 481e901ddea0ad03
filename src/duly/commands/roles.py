"""`duly servicer`, `duly scheduler`, `duly worker`: one role of a cluster, in a process of its own.

Stores, NATS servers and secrets come from the environment or duly.toml, never from the command line, where every
user of the machine could read them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.settings_flags import Apps, Directory, Functions, Host, LogLevel, Port, SettingsFile, Slots
from duly.commands.terminal import put, put_json

if TYPE_CHECKING:
    from duly.settings import Settings

_PLAIN = Output()

Name = Annotated[str | None, Parameter(help="Name of this process in the cluster.")]
ProbeHost = Annotated[str | None, Parameter(help="Address that health and metrics are told at; loopback by default.")]
ProbePort = Annotated[int | None, Parameter(help="Port for health and metrics; 0 takes a free one, none by default.")]


def servicer(
    *,
    dir_: Directory = None,
    host: Host = None,
    port: Port = None,
    name: Name = None,
    log_level: LogLevel = None,
    config: SettingsFile = None,
    output: Output = _PLAIN,
) -> None:
    """Serve the API over the stores of a cluster, until SIGTERM or Ctrl-C."""
    from duly.boot.roles import run_servicer

    flags = {"dir": _text(dir_), "host": host, "port": port, "name": name, "log_level": log_level}
    _run(run_servicer, flags, config, output, "servicer {url}")


def scheduler(
    *,
    name: Name = None,
    probe_host: ProbeHost = None,
    probe_port: ProbePort = None,
    log_level: LogLevel = None,
    config: SettingsFile = None,
    output: Output = _PLAIN,
) -> None:
    """Schedule for the shards that no other scheduler leads, until SIGTERM or Ctrl-C."""
    from duly.boot.roles import run_scheduler

    flags = {"name": name, "probe_host": probe_host, "probe_port": probe_port, "log_level": log_level}
    _run(run_scheduler, flags, config, output, "scheduler {name}")


def worker(
    *,
    server: Annotated[str | None, Parameter(help="Servicers, separated by commas.")] = None,
    slots: Slots = None,
    app: Apps = (),
    functions: Functions = None,
    name: Name = None,
    probe_host: ProbeHost = None,
    probe_port: ProbePort = None,
    log_level: LogLevel = None,
    config: SettingsFile = None,
    output: Output = _PLAIN,
) -> None:
    """Run what schedulers hand out, until SIGTERM or Ctrl-C."""
    from duly.boot.roles import run_worker

    flags = {
        "server": server,
        "slots": slots,
        "app": list(app) or None,
        "functions": functions,
        "name": name,
        "probe_host": probe_host,
        "probe_port": probe_port,
        "log_level": log_level,
    }
    _run(run_worker, flags, config, output, "worker {name}")


def _run(
    role: Callable[..., Coroutine[Any, Any, None]],
    flags: dict[str, Any],
    config: Path | None,
    output: Output,
    told: str,
) -> None:
    from duly.boot.serving import run
    from duly.log_output import configure
    from duly.settings import load

    settings: Settings = load(flags, path=config).settings
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `--app reports:duly` means ./reports.py, as for python -m
    configure(settings.log_level, settings.log_format)

    def started(what: dict[str, Any]) -> None:
        if output.json:
            put_json(what)
        else:
            put(f"duly {told.format(**what)}  (Ctrl-C ends it)")
        sys.stdout.flush()

    run(role(settings, started=started))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
