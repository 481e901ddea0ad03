"""`duly schedule preview`: needs no server, for schedules are values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.terminal import note, put_json, table
from duly.core.model import Dst

if TYPE_CHECKING:
    from duly.core.contract import OccurrenceView

_PLAIN = Output()


def preview_schedule(
    expr: Annotated[str, Parameter(name="EXPR", help="As in `every 15m`, `0 2 * * *`, `@daily`; in quotes.")],
    *,
    timezone: Annotated[str, Parameter(help="IANA time zone.")] = "UTC",
    dst: Annotated[Dst, Parameter(help="What a clock change does.")] = "cron",
    from_: Annotated[str | None, Parameter(name="--from", help="From this time on (RFC 3339); now by default.")] = None,
    count: Annotated[int, Parameter(help="How many times.")] = 10,
    output: Output = _PLAIN,
) -> None:
    """Show the next times of a schedule."""
    from duly.adapters.system_clock import SystemClock
    from duly.core.contract import OccurrenceView, PreviewView
    from duly.core.instants import format_instant, parse_instant
    from duly.core.schedule import parse_schedule, preview

    after = SystemClock().wall() if from_ is None else parse_instant(from_, pointer="/from") - 1
    schedule = parse_schedule(expr, timezone=timezone, dst=dst, anchor=after)
    items = [
        OccurrenceView(at=format_instant(item.at), local=item.local, moved_by_dst=item.moved_by_dst, note=item.note)
        for item in preview(schedule, after, count)
    ]
    if output.json:
        put_json(
            PreviewView(
                schedule=expr,
                timezone=timezone,
                kind=schedule.kind,
                description=schedule.describe(),
                items=items,
            )
        )
        return
    note(schedule.describe())
    put_times(items)


def put_times(items: Sequence[OccurrenceView]) -> None:
    """Coming instants: UTC, local, and what a clock change did to them."""
    table(("UTC", "LOCAL", "NOTE"), [(item.at, item.local, item.note) for item in items], empty="never again")
