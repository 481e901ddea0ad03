"""What happens, for those who watch: a bounded log of events that streams follow, and waiters for a run's end.

What this servicer writes comes in by `runs` and `jobs`, and is `told` to others; what others wrote, by `heard_…`.

Feeding is cheap when nobody watches: runs are kept as they are and become views only on the way to a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from duly.core import views
from duly.core.contract import EventView
from duly.core.errors import Malformed
from duly.core.instants import format_instant
from duly.core.model import Job, JobId, Run, RunKey

SKIPPED: Final = "stream.skipped"  # the kind of a gap
KEPT: Final = 10_000  # events that a reconnecting stream can still get
AT_ONCE: Final = 250  # events in one piece of a stream
TEXTS: Final = 8 << 20  # bytes of encoded events that are kept for the other streams
BEHIND: Final = 5_000  # a stream that is further behind than this skips ahead, and is told


# Called with what this very process has committed, or found: "run.started", "run.retrying", "run.finished" or
# "run.overdue", the runs, and when.
# It never waits and never raises.
Committed = Callable[[str, Sequence[tuple[Run, Job]], int], None]


def all_of(*listeners: Committed) -> Committed:
    """One that tells each of these."""

    def tell(kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        for listener in listeners:
            listener(kind, pairs, at)

    return tell


def nobody(kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
    """For those whom nobody listens to."""


class _JobFacts(msgspec.Struct, gc=False):
    """What an event tells of a job: a log of whole jobs would be large."""

    id: JobId
    name: str
    state: str
    version: int


class _Entry(msgspec.Struct, gc=False):
    number: int
    kind: str
    at: int
    namespace: str
    run: Run | None = None
    job: _JobFacts | None = None
    data: dict[str, object] | None = None
    skipped: int = 0


class EventLog:
    """The last events of this servicer, in order, and those who wait for them."""

    def __init__(self, epoch: str) -> None:
        """`epoch` tells the ids of this life from those of another."""
        self._epoch = epoch
        self.witness: Callable[[Sequence[tuple[Run, Job]]], None] | None = None  # told of runs that ended
        self._entries: deque[_Entry] = deque(maxlen=KEPT)
        self._number = 0
        self._news = asyncio.Event()
        self._waiters: dict[RunKey, set[asyncio.Event]] = {}
        self.progress: dict[RunKey, float] = {}
        self._texts: dict[int, bytes] = {}  # of the last events that were streamed
        self._texts_bytes = 0
        self.committed: Committed = nobody  # who is told of runs that this servicer itself has changed
        self.told: Callable[[str, int, Sequence[RunKey], Sequence[JobId]], None] | None = None
        self.followers = 0  # streams
        self.wanted = asyncio.Event()  # set when somebody begins to watch
        self._closed = False

    @property
    def number(self) -> int:
        """The number of the last event."""
        return self._number

    @property
    def watched(self) -> bool:
        """Somebody follows, or waits for a run's end."""
        return bool(self.followers or self._waiters)

    def runs(self, kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        """Runs that were opened, started or ended."""
        if kind == "run.finished" and self.witness is not None:
            self.witness(pairs)
        if self.told is not None:
            self.told(kind, at, [run.key for run, _ in pairs], ())
        self.heard_runs(kind, pairs, at)

    def heard_runs(self, kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        """As `runs`, written by another servicer."""
        number, entries = self._number, self._entries
        for run, job in pairs:
            number += 1
            entries.append(_Entry(number, kind, at, job.namespace, run))
        self._number = number
        if self._waiters or self.progress:
            self.wake(run.key for run, _ in pairs if run.state.terminal)
        self._tell()

    def from_schedulers(self, kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        """As `runs`, committed by a scheduler of this very process; mostly it has nothing to tell."""
        if pairs:
            self.runs(kind, pairs, at)

    def skipped(self, count: int) -> None:
        """So many events of others were too many to be read."""
        self._number += 1
        self._entries.append(_Entry(self._number, SKIPPED, 0, "", skipped=count))
        self._tell()

    def told_since(self, instant: int) -> set[tuple[str, RunKey]]:
        """What has happened to which runs in the events of an instant and later, as far as they are kept."""
        return {(entry.kind, entry.run.key) for entry in self._entries if entry.run is not None and entry.at >= instant}

    def wake(self, keys: Iterable[RunKey]) -> None:
        """These runs have ended: whoever waits for one may look."""
        for key in keys:
            self.progress.pop(key, None)
            for waiter in self._waiters.pop(key, ()):
                waiter.set()

    def job(self, kind: str, job: Job, at: int) -> None:
        """A job that was created, changed or deleted."""
        self.jobs(kind, [job], at)

    def jobs(self, kind: str, jobs: Sequence[Job], at: int) -> None:
        """Jobs that were created, changed or deleted; of more than are kept only the last ones."""
        if self.told is not None:
            self.told(kind, at, (), [job.id for job in jobs[-KEPT:]])
        self.heard_jobs(kind, jobs, at)

    def heard_jobs(self, kind: str, jobs: Sequence[Job], at: int) -> None:
        """As `jobs`, written by another servicer."""
        skipped = max(0, len(jobs) - KEPT)
        self._number += skipped
        for job in jobs[skipped:]:
            self._number += 1
            facts = _JobFacts(job.id, job.name, job.state, job.version)
            self._entries.append(_Entry(self._number, kind, at, job.namespace, None, facts))
        self._tell()

    def progressed(self, run: Run, job: Job, share: float, message: str, at: int) -> None:
        """A task says how far it is."""
        if len(self.progress) < KEPT or run.key in self.progress:
            self.progress[run.key] = share
        self._number += 1
        data: dict[str, object] = {"progress": share, "message": message}
        self._entries.append(_Entry(self._number, "run.progress", at, job.namespace, run, None, data))
        self._tell()

    async def follow_encoded(
        self, after: str | None, namespace: str | None, encode: Callable[[EventView], bytes]
    ) -> AsyncGenerator[bytes, None]:
        """As `follow`, up to AT_ONCE events in one piece. All name the same `encode`, called once an event."""
        last = self._number if after is None else self._number_of(after)
        with self._following():
            while not self._closed:
                news = self._news
                if self._number - last > BEHIND and after is None:
                    yield encode(self._gap(self._number, self._number - last))
                    last = self._number
                entries = self._since(last, AT_ONCE)
                wanted = [entry for entry in entries if namespace in (None, entry.namespace) or entry.kind == SKIPPED]
                last = entries[-1].number if entries else self._number
                if wanted:
                    yield b"".join([self._encoded(entry, encode) for entry in wanted])
                if self._number == last:
                    after = None
                    await news.wait()

    def _encoded(self, entry: _Entry, encode: Callable[[EventView], bytes]) -> bytes:
        text = self._texts.get(entry.number)
        if text is None:
            text = self._texts[entry.number] = encode(self._view(entry))
            self._texts_bytes += len(text)
            while len(self._texts) > 1 and self._texts_bytes > TEXTS:
                self._texts_bytes -= len(self._texts.pop(next(iter(self._texts))))
        return text

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._tell()

    def waiter(self, key: RunKey) -> asyncio.Event:
        """An event that is set when this servicer sees the run end. Give it back with `forget`."""
        event = asyncio.Event()
        self._waiters.setdefault(key, set()).add(event)
        self.wanted.set()
        return event

    def forget(self, key: RunKey, event: asyncio.Event) -> None:
        """The waiter is done."""
        waiting = self._waiters.get(key)
        if waiting is not None:
            waiting.discard(event)
            if not waiting:
                del self._waiters[key]

    async def follow(self, after: str | None, namespace: str | None) -> AsyncIterator[EventView]:
        """Events as they come, from the one after `after` if it is still kept, else from now on."""
        last = self._number if after is None else self._number_of(after)
        with self._following():
            async for event in self._follow(last, after, namespace):
                yield event

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        self.followers += 1
        self.wanted.set()
        try:
            yield
        finally:
            self.followers -= 1

    async def _follow(self, last: int, after: str | None, namespace: str | None) -> AsyncIterator[EventView]:
        while not self._closed:
            news = self._news
            if self._number - last > BEHIND and after is None:
                skipped = self._number - last
                last = self._number
                yield self._gap(last, skipped)
            for entry in self._since(last):
                last = entry.number
                if namespace in (None, entry.namespace) or entry.kind == SKIPPED:
                    yield self._view(entry)
            after = None
            if self._number == last:
                await news.wait()

    async def touched(self, after: int, namespace: str | None, jobs: frozenset[str] | None) -> int:
        """The number of the last event, once one after `after` is of the namespace and, if named, of these jobs.

        No views are made: this is for those who look again at the whole rather than read every event.
        """
        with self._following():
            while not self._closed:
                news = self._news
                for entry in reversed(self._since(after)):
                    about = (
                        entry.run.job_id if entry.run is not None else entry.job.id if entry.job is not None else None
                    )
                    if entry.kind == SKIPPED or (
                        namespace in (None, entry.namespace) and (jobs is None or about in jobs)
                    ):
                        return self._number
                after = self._number
                await news.wait()
        return self._number

    @property
    def closed(self) -> bool:
        """True once the servicer drains: streams end."""
        return self._closed

    def _since(self, number: int, most: int = KEPT) -> list[_Entry]:
        behind = self._number - number
        if behind <= 0:
            return []
        entries = self._entries
        first = max(0, len(entries) - behind)
        return [entries[index] for index in range(first, min(first + most, len(entries)))]

    def _number_of(self, event_id: str) -> int:
        epoch, _, number = event_id.rpartition("-")
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            raise Malformed(f"Last-Event-ID {event_id[:80]!r} is not an id of this stream")
        return min(int(number), self._number) if epoch == self._epoch else 0

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _gap(self, number: int, events: int) -> EventView:
        return EventView(id=f"{self._epoch}-{number}", type=SKIPPED, time="", data={"events": events})

    def _view(self, entry: _Entry) -> EventView:
        identity = f"{self._epoch}-{entry.number}"
        time = format_instant(entry.at)
        if entry.run is not None:
            run = entry.run
            data = entry.data or msgspec.to_builtins(views.run_view(run))
            return EventView(id=identity, type=entry.kind, time=time, run_id=run.id, job_id=run.job_id, data=data)
        if entry.job is None:
            return self._gap(entry.number, entry.skipped)
        job = entry.job
        facts: dict[str, object] = {"name": job.name, "state": job.state, "version": job.version}
        return EventView(id=identity, type=entry.kind, time=time, job_id=job.id, data=facts)
