"""The fields of a job as flags, for `duly create` and `duly job update`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter

from duly.commands.connection import pairs
from duly.core.model import Delivery, Dst, Misfire, Overlap

POLICY = Group("Job options", sort_key=50)


@Parameter(name="*", group=POLICY)
@dataclass(frozen=True)
class JobFlags:
    """What is left out keeps the server's default, or the job's present value."""

    name: Annotated[str | None, Parameter(help="A name for people; need not be unique.")] = None
    label: Annotated[tuple[str, ...], Parameter(negative=(), help="NAME=VALUE; can be repeated.")] = ()
    timezone: Annotated[str | None, Parameter(help="IANA time zone of the schedule; UTC by default.")] = None
    dst: Annotated[Dst | None, Parameter(help="What a clock change does to the schedule.")] = None
    start: Annotated[str | None, Parameter(help="No run before this time (RFC 3339).")] = None
    end: Annotated[str | None, Parameter(help="No run after this time (RFC 3339).")] = None
    max_runs: Annotated[int | None, Parameter(help="End after so many runs.")] = None
    jitter: Annotated[str | None, Parameter(help="Spread starts over this long after the time, as 30s.")] = None
    priority: Annotated[int | None, Parameter(help="0 to 9; 9 goes first.")] = None
    retry: Annotated[int | None, Parameter(help="Attempts at most, in all.")] = None
    timeout: Annotated[str | None, Parameter(help="End an attempt that takes longer, as 1h30m.")] = None
    max_lateness: Annotated[str | None, Parameter(help="A start later than this counts as late, as 2s.")] = None
    misfire: Annotated[Misfire | None, Parameter(help="What becomes of times that were missed.")] = None
    overlap: Annotated[Overlap | None, Parameter(help="What a run does while the one before goes on.")] = None
    delivery: Annotated[Delivery | None, Parameter(help="Whether a run may start again after a crash.")] = None
    requires: Annotated[
        tuple[str, ...], Parameter(negative=(), help="NAME=VALUE that a worker must have; can be repeated.")
    ] = ()

    def options(self) -> dict[str, Any]:
        """Those that were given, as options of the client."""
        plain = ("name", "timezone", "dst", "start", "end", "max_runs", "jitter", "priority", "retry", "timeout")
        names = (*plain, "max_lateness", "misfire", "overlap", "delivery")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.label:
            given["labels"] = pairs(self.label, "--label")
        if self.requires:
            given["requires"] = pairs(self.requires, "--requires")
        return given
