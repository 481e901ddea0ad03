"""`duly bench`: the measuring itself is in `duly.bench`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def bench(
    *,
    quick: Annotated[bool, Parameter(negative=(), help="Shorter, and rougher.")] = False,
    only: Annotated[tuple[str, ...], Parameter(negative=(), help="Only this measurement; repeatable.")] = (),
    cluster: Annotated[
        bool, Parameter(negative=(), help="Of a whole cluster on this machine: PostgreSQL, NATS, a process a role.")
    ] = False,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON on stdout and nothing else.")] = False,
) -> int:
    """Measure lateness and throughput on this machine."""
    from functools import partial

    from duly.bench import main
    from duly.commands.progress import working

    return main(quick=quick, only=only, json=json, cluster=cluster, watch=partial(working, quiet=json))
