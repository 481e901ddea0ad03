"""The event stream of a real `duly up`."""

from __future__ import annotations

from collections.abc import Callable

from system.served import Served, skipped, streamed, until


def test_what_the_scheduler_ends_is_streamed(serve: Callable[..., Served]) -> None:
    """Runs that overlap are skipped by nobody's report: each has its event all the same, once."""
    served = serve()
    with served.start() as duly, streamed([served.url]) as (events,):
        job = duly.create(argv=["/bin/sleep", "3"], schedule="every 1s", overlap="skip")
        until(lambda: len(skipped(events, job.id)) >= 2, what="what the scheduler ended")
