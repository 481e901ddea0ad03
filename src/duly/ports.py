"""The ports through which roles touch the world: store, broker, blobs, clock, and a small one for webhooks.

Each verb's docstring is its contract, clause by clause.

Stores are asked through some twenty verbs that speak of transitions, not rows. `apply` is the only way in
which a run changes state. Zero rows changed is an answer (a loser), never an exception.
All instants and durations are integer microseconds; instants are UTC by the shard's clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from duly.core.machine import Transition
from duly.core.messages import AnyMessage
from duly.core.model import Job, JobId, Run, RunKey, RunState, Term, Worker, WorkerId
from duly.core.ring import SlotMap

# -- store --------------------------------------------------------------------------------------------------


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs; every filter given must hold. `cursor` is what a page returned as `next`.

    `state` may be `completed` (active, with no run left to come); `active` leaves those out. `q` matches a part
    of name or id, in any case.
    `name` and `schedule` match whole; `task` is a kind. Ordered by id (that is, by creation) or name.
    """

    namespace: str | None = None
    name: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    state: Literal["active", "paused", "completed", "deleted"] | None = None
    with_deleted: bool = True
    task: str | None = None
    schedule: str | None = None
    q: str | None = None
    running: bool = False  # only jobs that have a run in state running
    order: Literal["created", "-created", "name", "-name"] = "created"  # by id, which only some keys unhinge from time
    cursor: str | None = None
    limit: int = 100


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs; newest scheduled first, unless `oldest_first`."""

    namespace: str | None = None
    job_id: JobId | None = None
    states: tuple[RunState, ...] = ()
    since: int | None = None  # scheduled_at >=
    until: int | None = None  # scheduled_at <
    late: bool | None = None
    worker: WorkerId | None = None
    oldest_first: bool = False
    cursor: str | None = None
    limit: int = 100


class JobRow(msgspec.Struct, frozen=True):
    """A job with what its runs say of it."""

    job: Job
    next_run_at: int | None  # the earliest due_at of its waiting runs
    last_run: Run | None  # the newest finished run that started, else None
    finished: bool  # no run is waiting or active


class JobPage(msgspec.Struct, frozen=True):
    """Rows and the cursor of the next page; `missing` names the shards that did not answer.

    A page may be short, even empty, while there is a `next`: a store looks at a bounded number of rows for one page.
    """

    items: tuple[JobRow, ...]
    next: str | None = None
    missing: tuple[str, ...] = ()


class RunPage(msgspec.Struct, frozen=True):
    """Runs and the cursor of the next page, which may be set on a short page as well."""

    items: tuple[Run, ...]
    next: str | None = None
    missing: tuple[str, ...] = ()


class Collision(msgspec.Struct, frozen=True):
    """`change` wrote nothing: a run that it was to open exists and waits no longer, the earliest at `scheduled_at`."""

    scheduled_at: int


class ShardStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one shard. `ended` counts history by state since the shard was made (approximate after prune)."""

    shard: str
    state: Literal["up", "down"] = "up"
    slots: int = 4096
    jobs: int = 0
    waiting: int = 0
    dispatched: int = 0
    running: int = 0
    ended: dict[str, int] = {}
    term: Term | None = None
    workers: tuple[Worker, ...] = ()
    bytes: int = 0


class Pruned(msgspec.Struct, frozen=True):
    """What a `prune` removed; `orphans` are digests that nothing in this shard refers to any more."""

    runs: int
    jobs: int
    orphans: tuple[str, ...]
    more: bool  # the limit was reached: call again


class Store(Protocol):
    """One shard's truth, or several behind one face. Safe to call from one event loop, concurrently."""

    shards: tuple[str, ...]

    def shard_of(self, job_id: JobId) -> str:
        """The shard that holds this job's slot."""
        ...

    async def now(self, shard: str | None = None) -> int:
        """The shard's clock. Any shard's, if none is named. It steps when it is set, back too, which is told within a
        second; leases and terms then move with it, so that a step ends none of them and prolongs none."""
        ...

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        """Write jobs with their first runs.

        Per item: None if it was written, else the job that already has this id (nothing of the item is then
        written). Returns after the commit. Terminal runs among the given go to history.
        Raises StorageFull, Unavailable, OutcomeUnknown.
        """
        ...

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        """The jobs in the order asked, None for those unknown. Deleted ones are returned while kept."""
        ...

    async def change(
        self,
        job: Job,
        was_version: int,
        opened: Sequence[Run],
        *,
        keep_waiting: bool = False,
        begun: frozenset[int] | None = None,
        unbegun: frozenset[int] | None = None,
        replaced: Job | None = None,
    ) -> Job | Collision | None:
        """Replace a job's document if its version still is `was_version`, and its waiting runs with `opened`.

        Waiting runs that never started (attempt 0, not manual) are removed and `opened` inserted, in the same
        transaction; with `keep_waiting` the waiting runs stay and `opened` is added. A deleted job loses all
        its waiting runs. `begun` names, by scheduled_at, the job's unfinished runs that have had an attempt, `unbegun`
        those that have not (manual ones apart): if they are others by now, nothing is written and the answer is a
        Collision. `replaced` is the job with the definition that ends with this change, kept for `versions` with its
        references to blobs, in the same transaction; beyond `core.versions.KEPT_VERSIONS` or `KEPT_BYTES` of a job
        the oldest go. Returns the job as written, None if the version differs or the job is unknown (nothing is
        written), or Collision.
        """
        ...

    async def versions(self, job_id: JobId, below: int | None, limit: int) -> list[Job]:
        """What `change` was given as `replaced` and still keeps of a job, newest definition first; with `below`, only
        those whose `defined_in` is lower. At most `limit`, and at most `core.versions.KEPT_VERSIONS`."""
        ...

    async def page_jobs(self, query: JobQuery) -> JobPage:
        """One page; a cursor stays valid while jobs come and go: none is shown twice, none that stays is left out."""
        ...

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        """Waiting runs with due_at <= until, ordered by (due_at, job_id, scheduled_at), strictly after the cursor."""
        ...

    async def apply(
        self, transitions: Sequence[Transition], *, shard: str | None = None, fence: int | None = None
    ) -> list[int]:
        """Carry out transitions, all in one commit; returns the indexes of the losers.

        A transition with `was_job` loses if its job has another version by now. Else it
        wins if the run still has (was_state, was_attempt, was_worker), a cancel noted or not as
        `was_cancelled` says and, while it waits, the job_version that the decision saw: a run that `change`
        replaced is another run. A loser changes nothing,
        its opened runs included. Runs that end move to history; opened runs that exist already stay as they
        are. With a fence (then `shard` is named): if it is not the shard's current one, nothing is written
        and Fenced is raised. All transitions of a call may lie on different shards only without a fence.
        """
        ...

    async def load(self, keys: Sequence[RunKey], *, shard: str | None = None) -> list[tuple[Run, Job] | None]:
        """Runs, hot or finished, with their jobs, in the order asked.

        `shard`: where they are, for whoever knows it better than by a slot map, which may be an older one.
        """
        ...

    async def page_runs(self, query: RunQuery) -> RunPage:
        """One page of runs, hot and finished together. Those of one job are never partial: Unavailable is raised."""
        ...

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        """Write one worker's row with lease_until = the shard's clock + ttl; returns it as written.

        A worker that was marked `lost` stays lost, with its old lease: it has to come back under a new id.
        """
        ...

    async def fleet(self, shard: str) -> list[Worker]:
        """The rows that workers' beats have written, lost workers' too, until `prune` forgets them."""
        ...

    async def expired(self, shard: str, limit: int) -> list[tuple[Run, Job, Worker | None]]:
        """Active runs whose worker's lease has ended or who is unknown, and marks those workers `lost`."""
        ...

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        """Dispatched and running runs, by (job_id, scheduled_at): what a scheduler takes over with the term."""
        ...

    async def hold(self, shard: str, owner: str, ttl: int, *, release: bool = False) -> Term:
        """Take or extend the term. Returns the term in force: yours if `owner` is you, else the holder's.

        An expired, released or new term goes to the caller with a fence one higher than any before; the
        holder's own call extends it with the fence unchanged. `release` ends it at once if it is the caller's.
        """
        ...

    async def slots(self, shard: str, proposed: SlotMap | None = None) -> SlotMap | None:
        """The slot map in force at this shard; None if it has none yet.

        `proposed` is written before the answer if there is none or its epoch is higher than that of the one there; a
        lower or equal epoch changes nothing, so the answer says whether it was taken. Epochs of a shard never fall.
        Once a proposed map was answered, no `create` is committed that was judged by an older one.
        """
        ...

    async def stats(self) -> list[ShardStats]:
        """Counts of every shard; one that does not answer is `down`."""
        ...

    async def prune(self, limit: int) -> Pruned:
        """Remove at most `limit` finished runs beyond their jobs' `keep` (not before their time: a schedule could come
        to an occurrence again that was cancelled ahead of it), jobs that are over (deleted, or completed) once nothing
        is kept of them, and workers not heard of for a day. Waiting and active runs are never touched."""
        ...

    async def referred(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that a job or a run refers to."""
        ...

    async def migrate(self) -> int:
        """Bring the schema up to date; returns the number of steps taken. Refuses a schema newer than the code."""
        ...

    async def close(self) -> None:
        """Commit what is queued, then let go. Later calls raise Unavailable."""
        ...


# -- broker -------------------------------------------------------------------------------------------------

Handler = Callable[[AnyMessage], Awaitable[AnyMessage | None]]


class Subscription(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """No message is handled after this returns."""
        ...


class Broker(Protocol):
    """Messages between roles: fast, bounded, and allowed to lose any of them."""

    @property
    def connected(self) -> bool:
        """False while messages certainly go nowhere: whoever waits for one had better look in the store."""
        ...

    async def publish(self, subject: str, message: AnyMessage) -> None:
        """Hand a message to every subscriber of the subject (one of each group). Never waits for handlers; a
        full subscriber loses it, which is counted."""
        ...

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        """Call `handler` for each message of the subject, one at a time and in order. An exception in it is
        logged and counted; the next message is handled. What it returns answers a request."""
        ...

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        """Publish and await the first answer. Raises Unavailable when nobody listens, TimedOut after `timeout` µs."""
        ...

    async def close(self) -> None:
        """Stop every subscription."""
        ...


# -- blobs --------------------------------------------------------------------------------------------------


class Blobs(Protocol):
    """Bytes by the sha256 of their content ("sha256:<hex>"); written once, never changed."""

    async def put(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int, expected: str | None = None
    ) -> tuple[str, int]:
        """Store a stream; returns (digest, size) when it is durable. TooLarge past `limit`, InvalidInput when
        the content is not `expected`; then nothing is kept. The same content twice is one blob."""
        ...

    def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Stream a blob, or a range of it. A whole read is checked: BlobCorrupt is raised before the last chunk
        is given. NotFound if there is none."""
        ...

    async def size(self, digest: str) -> int | None:
        """Its size in bytes, None if there is no such blob."""
        ...

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        """Remove blobs that were not written or written again within the last `unused_for` µs; returns how many."""
        ...

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        """At most `limit` digests after `after`, in their order, not written again within `unused_for` µs."""
        ...

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        """Put a checked copy at a local path (from a bounded local cache where there is one)."""
        ...


# -- webhooks -----------------------------------------------------------------------------------------------


class Posted(NamedTuple):
    """What became of one request: the status, or 0 when none came back and why not."""

    status: int
    problem: str = ""  # in words; empty after a 2xx
    retry_after: int | None = None  # µs that the receiver asks to be left alone
    hopeless: bool = False  # it would be so again: the address is refused


class HttpSender(Protocol):
    """Posts to addresses that an operator named."""

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout: int, allow_private: bool
    ) -> Posted:
        """One request, answered or given up within `timeout` µs in all. No redirect is followed, and of the answer
        nothing but its head is read. Whatever a network or a receiver does is an answer, not an exception."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


# -- clock --------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """A node's own clock. It may make a node stop sooner; it never decides what is due (rule 6)."""

    def wall(self) -> int:
        """Microseconds UTC by this node."""
        ...

    def monotonic(self) -> int:
        """Microseconds of a clock that never steps."""
        ...

    async def sleep(self, duration: int) -> None:
        """Wait `duration` µs of the monotonic clock, or until cancelled."""
        ...

    async def wait(self, event: Waitable, timeout: int | None) -> bool:
        """Wait for the event at most `timeout` µs; True if it was set."""
        ...


class Waitable(Protocol):
    """What `Clock.wait` waits for: an asyncio.Event or its like."""

    async def wait(self) -> Literal[True]:
        """Return once set."""
        ...

    def is_set(self) -> bool:
        """True once set."""
        ...
