"""What workers say to servicers over HTTP when no broker answers: the broker's own messages, within bounds. Pure.

POST /v1/workers/{id}/beat    WorkerBeat   ─▶ BeatAnswer, with what the store has out at the worker
POST /v1/workers/{id}/report  WorkerReport ─▶ ReportAnswer
GET  /v1/workers/{id}/shards               ─▶ ShardNames
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from duly.core.contract import View, Wire
from duly.core.errors import Conflict, InvalidInput
from duly.core.messages import MAX_REPORT, VERSION, Beat, Report, Started, WorkerEvent
from duly.core.model import WorkerId

MAX_HELD: Final = 50_000  # attempts in one beat
MAX_LABELS: Final = 64
MAX_FUNCTIONS: Final = 10_000
MAX_BODY: Final = 8 * 1024**2  # bytes of a request; a report beyond it goes in parts
MAX_COUNT: Final = 1_000_000  # of slots, attempts, capacity
LAST: Final = 1 << 62  # of instants and sizes, what a store can keep

_WORKER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)

ProtocolVersion = Annotated[int, Meta(ge=0, le=65_535, description="of the messages between roles")]
ShardName = Annotated[str, Meta(min_length=1, max_length=100)]


class WorkerBeat(Wire, frozen=True, kw_only=True):
    """A worker lives: itself, and the attempts that it holds for a shard."""

    shard: ShardName
    beat: Beat
    version: ProtocolVersion = VERSION


class WorkerReport(Wire, frozen=True, kw_only=True):
    """What became of attempts, in order, repeated until it is answered."""

    report: Report
    version: ProtocolVersion = VERSION


class ShardNames(View, frozen=True, kw_only=True):
    """The shards that a worker beats to."""

    shards: tuple[str, ...]


def checked_id(text: str) -> WorkerId:
    """A worker's id. Raises InvalidInput."""
    if _WORKER_ID.fullmatch(text) is None:
        raise InvalidInput.at("/path/worker_id", "a worker's id has 1 to 80 of A-Z, a-z, 0-9, ., _ and -")
    return WorkerId(text)


def check_version(version: int) -> None:
    """Raises Conflict for a worker that speaks another version."""
    if version != VERSION:
        raise Conflict(f"this servicer speaks version {VERSION} with workers, not {version}")


def check_beat(worker: WorkerId, beat: Beat) -> None:
    """Raises InvalidInput with a pointer for what is out of bounds, or another worker's."""
    row = beat.worker
    _same(worker, row.id, "/beat/worker/id")
    if row.state == "lost":
        raise InvalidInput.at("/beat/worker/state", "a worker is ready or draining; lost is what a shard says")
    for name, count in (("slots", row.slots), ("free", row.free)):
        _within(count, 0, MAX_COUNT, f"/beat/worker/{name}")
    for name, value in (("clock_offset", row.clock_offset), ("beat_at", row.beat_at), ("lease_until", row.lease_until)):
        _within(value, -LAST, LAST, f"/beat/worker/{name}")
    _at_most(len(row.labels), MAX_LABELS, "/beat/worker/labels")
    _at_most(len(row.functions or ()), MAX_FUNCTIONS, "/beat/worker/functions")
    for told, where in ((beat.capacity, "/beat/capacity"), (row.capacity, "/beat/worker/capacity")):
        for count in told.values():
            _within(count, 0, MAX_COUNT, where)
    _within(beat.sent, -LAST, LAST, "/beat/sent")
    _at_most(len(beat.held), MAX_HELD, "/beat/held")
    for index, ((_, scheduled_at), attempt) in enumerate(beat.held):
        _within(scheduled_at, -LAST, LAST, f"/beat/held/{index}")
        _within(attempt, 0, MAX_COUNT, f"/beat/held/{index}")


def check_report(worker: WorkerId, report: Report) -> None:
    """Raises InvalidInput with a pointer for what is out of bounds, or another worker's."""
    _same(worker, report.worker, "/report/worker")
    _at_most(len(report.events), MAX_REPORT, "/report/events")
    for count in report.capacity.values():
        _within(count, 0, MAX_COUNT, "/report/capacity")
    for index, ((_, scheduled_at), event) in enumerate(report.events):
        where = f"/report/events/{index}"
        _within(scheduled_at, -LAST, LAST, where)
        _check_event(event, where)


def _check_event(event: WorkerEvent, where: str) -> None:
    _within(event.attempt, 0, MAX_COUNT, f"{where}/attempt")
    for name in ("started_at", "finished_at", "exit_code"):
        value = getattr(event, name, None)
        if value is not None:
            _within(value, -LAST, LAST, f"{where}/{name}")
    if not isinstance(event, Started):
        for output in getattr(event, "outputs", ()):
            _within(output.size, 0, LAST, f"{where}/outputs")


def _same(worker: WorkerId, told: str, pointer: str) -> None:
    if told != worker:
        raise InvalidInput.at(pointer, "the path names another worker")


def _within(value: int, least: int, most: int, pointer: str) -> None:
    if not least <= value <= most:
        raise InvalidInput.at(pointer, f"a number from {least} to {most}")


def _at_most(count: int, most: int, pointer: str) -> None:
    if count > most:
        raise InvalidInput.at(pointer, f"at most {most:,}")


def encode(message: WorkerBeat | WorkerReport) -> bytes:
    """The body of a request."""
    return msgspec.json.encode(message)
