"""`duly register`: the jobs of an app's decorated functions, made or brought up to date without a worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from duly.commands.connection import Connection
from duly.commands.terminal import put, put_json
from duly.core.errors import Forbidden

_HERE = Connection()


def register(
    app: Annotated[tuple[str, ...], Parameter(help="MODULE:NAME of a Duly; several may be given.")],
    /,
    *,
    connection: Connection = _HERE,
) -> None:
    """Create the jobs of the app's scheduled functions, or bring them up to date: a token of scope operate may."""
    import asyncio

    from duly.boot.apps import register_apps
    from duly.faces.http_transport import HttpTransport

    settings = connection.settings().settings
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `reports:duly` means ./reports.py, as for python -m

    async def carry_out() -> list[tuple[str, str, str]]:
        transport = HttpTransport(settings.server, token=settings.token)
        try:
            return await register_apps(app, transport)
        except Forbidden as error:
            raise Forbidden(
                "registering creates jobs and brings them up to date, which takes a token of scope operate; "
                f"the server says: {error.detail}"
            ) from None
        finally:
            await transport.close()

    jobs = asyncio.run(carry_out())
    if connection.json:
        put_json({"items": [{"id": job_id, "function": name, "schedule": schedule} for job_id, name, schedule in jobs]})
        return
    for job_id, name, schedule in jobs:
        put(f"{job_id}\t{name}\t{schedule}")
