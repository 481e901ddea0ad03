"""`duly up` and `duly migrate`: what runs on the machine that has the directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.settings_flags import Apps, Directory, Functions, Host, LogLevel, Port, SettingsFile, Slots
from duly.commands.terminal import put, put_json

_PLAIN = Output()


def up(
    *,
    dir_: Directory = None,
    host: Host = None,
    port: Port = None,
    slots: Slots = None,
    shards: Annotated[int | None, Parameter(help="Stores side by side; fixed when the directory is made.")] = None,
    app: Apps = (),
    functions: Functions = None,
    log_level: LogLevel = None,
    config: SettingsFile = None,
    output: Output = _PLAIN,
) -> None:
    """Run everything here in one process, until SIGTERM or Ctrl-C."""
    from duly.settings import load

    flags = {
        "dir": None if dir_ is None else str(dir_),
        "host": host,
        "port": port,
        "slots": slots,
        "shards": shards,
        "app": list(app) or None,
        "functions": functions,
        "log_level": log_level,
    }
    settings = load(flags, path=config).settings
    from duly.boot.up import run_up

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `--app reports:duly` means ./reports.py, as for python -m

    def started(url: str) -> None:
        if output.json:
            put_json({"url": url})
        else:
            put(f"duly {url}  (dashboard; API at {url}/docs, data in {settings.dir}; Ctrl-C ends it)")
        sys.stdout.flush()

    run_up(settings, started=started)


def migrate(*, dir_: Directory = None, config: SettingsFile = None, output: Output = _PLAIN) -> None:
    """Bring stores to this version's schema: the shards that are configured, else those of a directory."""
    import asyncio

    from duly.boot import assemble
    from duly.settings import load
    from duly.tasks.registry import FunctionRegistry

    flags = {"dir": None if dir_ is None else str(dir_)}
    configured = load(flags, path=config).settings
    if configured.stores:
        from duly.boot.roles import migrate as migrate_shards

        steps = asyncio.run(migrate_shards(configured))
        if output.json:
            put_json({"steps": steps})
        else:
            put(f"{', '.join(configured.stores)}: {steps} step(s) taken")
        return
    present = len(list(Path(load(flags, path=config).settings.dir).glob("shard-*.db")))
    settings = load({**flags, "shards": present or None}, path=config).settings

    async def bring() -> int:
        node = assemble(settings, FunctionRegistry())
        try:
            return await node.store.migrate()
        finally:
            await node.store.close()

    schema = asyncio.run(bring())
    if output.json:
        put_json({"schema": schema})
    else:
        put(f"{settings.dir} is at schema {schema}")
