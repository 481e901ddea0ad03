"""The jobs of an app's decorated functions: created, or brought up to date, by whoever runs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from duly.faces.transport import Transport
from duly.tasks.registry import app_object

log = logging.getLogger("duly.boot")


async def register_apps(apps: Sequence[str], transport: Transport) -> list[tuple[str, str, str]]:
    """For each app, given as MODULE:NAME, through a servicer. Several that do so at once do no harm.

    Returns (job id, function, schedule) of each scheduled function.
    """
    from duly.faces.client import Client
    from duly.faces.registration import register

    made = []
    for spec in apps:
        app = app_object(spec)
        if isinstance(app, Client):
            for registration in app.aio.registrations:
                job = await register(transport, registration)
                if job is not None:
                    log.info("job %s of %s: %s", job.id, registration.name, job.schedule)
                    made.append((job.id, registration.name, job.schedule))
    return made
