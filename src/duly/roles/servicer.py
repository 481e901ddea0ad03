"""The servicer: every use-case that a client has, stateless, any number side by side.

    create   validate ─▶ mint id ─▶ store.create (job + first run, one commit) ─▶ hint the shard's scheduler
    change   read ─▶ decide ─▶ store.change (job + waiting runs, one commit) ─▶ hint, recall what is not started
    report   load ─▶ machine.step ─▶ store.apply ─▶ tell the scheduler and those who watch (reports.py)

Faces call these methods and nothing else. Ids and namespaces are checked here; a job of another namespace does
not exist for the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from duly.core import contract, policy
from duly.core.contract import (
    BatchItem,
    BatchView,
    BlobView,
    BulkSpec,
    BulkView,
    EventView,
    ExplainView,
    JobList,
    JobSpec,
    JobView,
    LatenessView,
    OccurrenceView,
    PreviewSpec,
    PreviewView,
    RunList,
    RunningJob,
    RunningList,
    RunView,
    ShardList,
    ShardView,
    StatsView,
    WorkerList,
)
from duly.core.definition import decode, define_job, keyed_job_id, mint_job_id, patch_job
from duly.core.errors import (
    CodeMissing,
    Conflict,
    DulyError,
    FieldError,
    IdempotencyKeyReused,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from duly.core.explain import explain
from duly.core.instants import SECOND, format_instant, parse_instant
from duly.core.machine import CancelAsked, Refusal, step
from duly.core.messages import NOTICES, AnyMessage, Cancel, Hint, Notice, hints, inbox
from duly.core.model import Job, JobId, Run, RunKey, RunState, parse_run_id
from duly.core.schedule import parse_schedule, preview
from duly.ports import Blobs, Broker, Clock, Collision, JobQuery, JobRow, RunQuery, Store, Subscription
from duly.roles.events import EventLog
from duly.roles.outputs import OutputReader
from duly.roles.reports import ReportDesk
from duly.telemetry import Telemetry

HINT_HORIZON: Final = 30 * SECOND  # runs due later are left to the scheduler's refill
TRIES: Final = 8  # a change that lost to another change or to a dispatch is decided anew
MINTS: Final = 16  # ids tried until one lies on a live shard
BULK_PAGE: Final = 500
BULK_ERRORS: Final = 100
SCHEDULE_FIELDS: Final = ("schedule", "timezone", "dst", "start", "end", "max_runs", "jitter", "calendar")


class Servicer:
    """The use-cases of the API over a store, a broker and blobs."""

    def __init__(
        self,
        *,
        name: str,
        store: Store,
        broker: Broker,
        blobs: Blobs,
        clock: Clock,
        entropy: Callable[[int], bytes],
        dice: Callable[[], float],
        telemetry: Telemetry,
        max_blob_bytes: int = 1 << 30,
    ) -> None:
        self.name = name
        self.telemetry = telemetry
        self._store = store
        self._broker = broker
        self._blobs = blobs
        self._clock = clock
        self._entropy = entropy
        self._max_blob_bytes = max_blob_bytes
        self.event_log = EventLog(entropy(4).hex())
        self.outputs = OutputReader(broker=broker, blobs=blobs)
        self.reports = ReportDesk(store=store, broker=broker, events=self.event_log, telemetry=telemetry, dice=dice)
        self._subscriptions: list[Subscription] = []

    # -- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take reports and notices."""
        await self.reports.start()
        self._subscriptions.append(await self._broker.subscribe(NOTICES, self._notice))

    async def drain(self) -> None:
        """End the streams, so that a server can finish its other requests."""
        self.event_log.close()

    async def stop(self) -> None:
        """Take no more reports and notices."""
        await self.drain()
        await self.reports.stop()
        for subscription in self._subscriptions:
            await subscription.stop()
        self._subscriptions.clear()

    async def ready(self) -> list[str]:
        """What is missing to serve, in words; empty when all is well."""
        missing: list[str] = []
        for shard in await self._store.stats():
            if shard.state != "up":
                missing.append(f"shard {shard.shard} does not answer")
                continue
            now = await self._store.now(shard.shard)
            if shard.term is None or shard.term.expires_at <= now:
                missing.append(f"shard {shard.shard} has no scheduler")
            if not any(worker.lease_until > now and worker.state != "lost" for worker in shard.workers):
                missing.append(f"shard {shard.shard} has no worker")
        return missing

    async def _notice(self, message: AnyMessage) -> None:
        if isinstance(message, Notice) and message.kind == "run.progress" and message.key is not None:
            found = (await self._store.load([message.key]))[0]
            if found is None or found[0].state.terminal:
                return
            share = msgspec.json.decode(message.data.get("progress", b"0"), type=float)
            text = msgspec.json.decode(message.data.get("message", b'""'), type=str)
            self.event_log.progressed(found[0], found[1], share, text, await self._store.now())

    # -- creating -------------------------------------------------------------------------------------------

    async def create_job(
        self, spec: JobSpec, *, namespace: str = "default", key: str | None = None, body_digest: str = ""
    ) -> tuple[JobView, bool]:
        """Create a job; with a key, the same key and body find the first one. True if it was made now.

        Raises InvalidInput, CodeMissing, IdempotencyKeyReused, Unavailable (no live shard, or the key's own).
        """
        await self._require_blobs(spec)
        last: Unavailable | None = None
        for _ in range(1 if key else MINTS):
            job_id = keyed_job_id(namespace, key) if key else mint_job_id(self._clock.wall(), self._entropy(10))
            try:
                shard = self._store.shard_of(job_id)
                now = await self._store.now(shard)
                job = define_job(
                    spec, job_id=job_id, now=now, namespace=namespace, body_digest=body_digest if key else ""
                )
                opened = _opened(job, now)
                existing = (await self._store.create([(job, opened)]))[0]
            except Unavailable as error:
                last = error
                continue
            if existing is None:
                await self._hint([(run, job) for run in opened], now)
                self.telemetry.jobs_created(1)
                self.event_log.job("job.created", job, now)
                next_run_at = opened[0].due_at if opened else None
                return _view(JobRow(job, next_run_at, None, finished=not opened)), True
            if existing.body_digest != body_digest:
                raise IdempotencyKeyReused
            return await self.get_job(job_id, namespace=namespace), False
        raise last or Unavailable("no shard takes new jobs at the moment")

    async def create_jobs(self, bodies: Sequence[msgspec.Raw], *, namespace: str = "default") -> BatchView:
        """Create many jobs; one result each, in order. One bad job does not spoil the others."""
        results: list[BatchItem | None] = [None] * len(bodies)
        now = await self._store.now()
        pairs: list[tuple[int, Job, Sequence[Run]]] = []
        entropy = self._entropy(10 * len(bodies))
        known: set[str] = set()
        for index, body in enumerate(bodies):
            try:
                spec = decode(body, JobSpec, prefix=f"/jobs/{index}")
                await self._require_blobs(spec, known)
                job_id = mint_job_id(now, entropy[10 * index : 10 * index + 10])
                job = define_job(spec, job_id=job_id, now=now, namespace=namespace)
                pairs.append((index, job, _opened(job, now)))
            except DulyError as error:
                results[index] = BatchItem(status=error.status, error=contract.problem(error, prefix=f"/jobs/{index}"))
        await self.create_defined([(job, runs) for _, job, runs in pairs])
        for index, job, _ in pairs:
            results[index] = BatchItem(status=201, id=job.id)
        made = [result for result in results if result is not None]
        return BatchView(results=made, created=len(pairs), failed=len(bodies) - len(pairs))

    async def create_defined(self, pairs: Sequence[tuple[Job, Sequence[Run]]]) -> None:
        """Write jobs that were defined with freshly minted ids, in one commit for each shard."""
        if not pairs:
            return
        await self._store.create(pairs)
        now = await self._store.now()
        await self._hint([(run, job) for job, runs in pairs for run in runs], now)
        self.telemetry.jobs_created(len(pairs))
        for job, _ in pairs:
            self.event_log.job("job.created", job, now)

    async def _require_blobs(self, spec: JobSpec, known: set[str] | None = None) -> None:
        task = spec.task
        if not isinstance(task, contract.CommandSpec) or not (task.code or task.inputs):
            return
        named = {f"/task/inputs/{path}": digest for path, digest in task.inputs.items()}
        if task.code is not None:
            named["/task/code"] = task.code
        known = set() if known is None else known
        wrong = []
        for pointer, digest in named.items():
            if digest in known:
                continue
            if await self._blobs.size(digest) is None:
                wrong.append(FieldError(pointer, f"there is no blob {digest}; upload it first"))
            known.add(digest)
        if wrong:
            raise CodeMissing(errors=tuple(wrong))

    async def _hint(self, pairs: Sequence[tuple[Run, Job]], now: int, changed: Sequence[JobId] = ()) -> None:
        """Tell the schedulers of the shards what was opened or changed."""
        by_shard: dict[str, list[tuple[Run, Job]]] = {}
        if len(self._store.shards) == 1:
            by_shard[self._store.shards[0]] = [pair for pair in pairs if pair[0].due_at <= now + HINT_HORIZON]
        else:
            for run, job in pairs:
                if run.due_at <= now + HINT_HORIZON:
                    by_shard.setdefault(self._store.shard_of(job.id), []).append((run, job))
            for job_id in changed:
                by_shard.setdefault(self._store.shard_of(job_id), [])
        for shard, runs in by_shard.items():
            if runs or changed:
                hint = Hint(shard=shard, runs=tuple(runs), changed=tuple(changed))
                await self._broker.publish(hints(shard), hint)

    # -- reading jobs ---------------------------------------------------------------------------------------

    async def get_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """The job as clients read it. Raises NotFound."""
        return _view(await self._row(job_id, namespace))

    async def _row(self, job_id: str, namespace: str | None) -> JobRow:
        row = (await self._store.get([JobId(job_id)]))[0]
        if row is None or (namespace is not None and row.job.namespace != namespace):
            raise NotFound(f"there is no job {job_id[:80]!r}")
        return row

    async def list_jobs(self, query: JobQuery) -> JobList:
        """A page of jobs."""
        page = await self._store.page_jobs(query)
        return JobList(
            items=[_view(row) for row in page.items],
            next=page.next,
            partial=bool(page.missing),
            missing_shards=list(page.missing),
        )

    async def running_jobs(self, query: JobQuery) -> RunningList:
        """Jobs that have a run in state running, with those runs."""
        page = await self._store.page_jobs(replace(query, running=True))
        items = []
        for row in page.items:
            runs = await self._store.page_runs(RunQuery(job_id=row.job.id, states=(RunState.RUNNING,), limit=1000))
            if runs.items:
                views = [self._run_view(run) for run in runs.items]
                items.append(RunningJob(job=_view(row), runs=views))
        return RunningList(items=items, next=page.next, partial=bool(page.missing), missing_shards=list(page.missing))

    # -- changing jobs --------------------------------------------------------------------------------------

    async def update_job(
        self, job_id: str, patch: object, *, namespace: str | None = None, if_version: int | None = None
    ) -> JobView:
        """Apply a JSON merge patch. Raises PreconditionFailed, Conflict (deleted), InvalidInput, NotFound."""

        def change(job: Job, now: int) -> Job:
            return patch_job(job, patch, now=now)

        row = await self._row(job_id, namespace)
        if row.job.state != "deleted":
            await self._require_blobs(contract.job_spec(change(row.job, self._clock.wall())))
        await self._change(job_id, namespace, if_version, change, "job.updated")
        return await self.get_job(job_id)

    async def pause_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """No further occurrence starts until it is resumed; what has started goes on, retries included."""
        return await self._set_state(job_id, namespace, "paused", "job.paused")

    async def resume_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """Go on from now: what fell due while paused is not made up for; a one-time run that waited is due."""
        return await self._set_state(job_id, namespace, "active", "job.resumed")

    async def _set_state(self, job_id: str, namespace: str | None, state: str, kind: str) -> JobView:
        row = await self._row(job_id, namespace)
        if row.job.state != state:

            def change(job: Job, now: int) -> Job:
                return msgspec.structs.replace(job, state=state, version=job.version + 1, updated_at=now)

            await self._change(job_id, namespace, None, change, kind)
        return await self.get_job(job_id)

    async def delete_job(self, job_id: str, *, namespace: str | None = None, if_version: int | None = None) -> None:
        """Waiting runs go, a dispatched or running one is cancelled, history stays. Repeating it is harmless."""
        row = await self._row(job_id, namespace)
        if row.job.state == "deleted":
            return

        def change(job: Job, now: int) -> Job:
            return replace(job, state="deleted", version=job.version + 1, updated_at=now)

        await self._change(job_id, namespace, if_version, change, "job.deleted")
        for run in await self._active_runs(row.job.id):
            await self._ask_cancel(run.key, "job deleted")

    async def _change(
        self,
        job_id: str,
        namespace: str | None,
        if_version: int | None,
        change: Callable[[Job, int], Job],
        kind: str,
    ) -> Job:
        """Read, decide, compare-and-set; again when another change or a dispatch came between."""
        for _ in range(TRIES):
            row = await self._row(job_id, namespace)
            before = row.job
            if if_version is not None and before.version != if_version:
                raise PreconditionFailed(f"the job is at version {before.version}, not {if_version}")
            if before.state == "deleted":
                raise Conflict("the job is deleted")
            now = await self._store.now(self._store.shard_of(before.id))
            job = change(before, now)
            opened = await self._reopened(before, job, now)
            written = await self._store.change(job, before.version, opened)
            if written is None or isinstance(written, Collision):
                continue
            await self._hint([(run, job) for run in opened], now, changed=[job.id])
            await self._recall(job)
            self.event_log.job(kind, job, now)
            return job
        raise Conflict("the job is being changed by others; try again")

    async def _reopened(self, before: Job, job: Job, now: int) -> list[Run]:
        """The waiting runs that a changed job shall have in place of its present ones."""
        if job.state != "active":
            return []
        schedule = policy.schedule_of(job)
        active = await self._active_runs(job.id)
        same_times = before.state == "active" and all(
            getattr(before, name) == getattr(job, name) for name in SCHEDULE_FIELDS
        )
        if same_times:
            waiting = await self._store.page_runs(
                RunQuery(job_id=job.id, states=(RunState.WAITING,), oldest_first=True, limit=1000)
            )
            return [
                replace(run, priority=job.priority, job_version=job.version)
                for run in waiting.items
                if run.attempt == 0 and not run.manual
            ]
        ordinal = await self._next_ordinal(job)
        if schedule.kind == "once":
            first = policy.once_run(job)
            known = first and (await self._store.load([first.key]))[0]
            waits = known is None or (known and known[0].state == RunState.WAITING)
            return [first] if first is not None and waits else []
        if schedule.kind == "delay" and any(not run.manual for run in active):
            return []  # the end of the run that is out opens the next one
        after = max([now, *(run.scheduled_at for run in active if not run.manual)])
        if schedule.kind == "delay":
            after = now - 1
        opened: list[Run] = []
        for _ in range(TRIES):
            first = policy.first_run(job, after, ordinal)
            if first is None:
                return []
            known = (await self._store.load([first.key]))[0]
            if known is None or known[0].state == RunState.WAITING:
                opened = [first]
                break
            after = first.scheduled_at  # it has been: cancelled ahead of its time, say
        return opened

    async def _next_ordinal(self, job: Job) -> int:
        """One more than the occurrences of the job that were started, for `max_runs`."""
        if job.max_runs is None:
            return 1
        cursor: str | None = None
        for _ in range(TRIES):
            page = await self._store.page_runs(RunQuery(job_id=job.id, limit=500, cursor=cursor))
            for run in page.items:
                if run.attempt and not run.manual:
                    return run.ordinal + 1
            cursor = page.next
            if cursor is None:
                break
        return 1

    async def _active_runs(self, job_id: JobId) -> Sequence[Run]:
        page = await self._store.page_runs(
            RunQuery(job_id=job_id, states=(RunState.DISPATCHED, RunState.RUNNING), limit=1000)
        )
        return page.items

    async def _recall(self, job: Job) -> None:
        """Ask workers to hand back what they hold of this job and have not started."""
        for run in await self._active_runs(job.id):
            if run.state == RunState.DISPATCHED and not run.manual:
                cancel = Cancel(key=run.key, attempt=run.attempt, reason="changed", unless_started=True)
                await self._broker.publish(inbox(run.worker), cancel)

    # -- acting on jobs -------------------------------------------------------------------------------------

    async def trigger_job(self, job_id: str, *, namespace: str | None = None) -> RunView:
        """Open a run now, outside the schedule. A paused job can be triggered, a deleted one not (Conflict)."""
        row = await self._row(job_id, namespace)
        return self._run_view(await self._open_manual(row.job))

    async def _open_manual(self, job: Job, retry_of: int | None = None) -> Run:
        now = await self._store.now(self._store.shard_of(job.id))
        for _ in range(TRIES):
            if job.state == "deleted":
                raise Conflict("the job is deleted")
            run = policy.manual_run(job, now, retry_of=retry_of)
            if (await self._store.load([run.key]))[0] is not None:
                now += 1  # another run has this very instant
                continue
            written = await self._store.change(job, job.version, [run], keep_waiting=True)
            if isinstance(written, Job):
                await self._hint([(run, job)], now)
                return run
            if written is None:
                job = (await self._row(job.id, None)).job
        raise Conflict("the job is being changed by others; try again")

    async def bulk(self, spec: BulkSpec, *, namespace: str | None = None) -> BulkView:
        """Do one thing to every job that the filter finds; a job that refuses does not stop the others."""
        rows = [row async for row in self._matching(spec, namespace)]
        ids = [row.job.id for row in rows]
        if spec.dry_run:
            return BulkView(action=spec.action, dry_run=True, matched=len(ids), changed=0, ids=list(ids[:1000]))
        changed = 0
        errors: list[BatchItem] = []
        for job_id in ids:
            try:
                match spec.action:
                    case "pause":
                        await self.pause_job(job_id, namespace=namespace)
                    case "resume":
                        await self.resume_job(job_id, namespace=namespace)
                    case "delete":
                        await self.delete_job(job_id, namespace=namespace)
                    case "trigger":
                        await self.trigger_job(job_id, namespace=namespace)
                changed += 1
            except DulyError as error:
                if len(errors) < BULK_ERRORS:
                    errors.append(BatchItem(status=error.status, id=job_id, error=contract.problem(error)))
        return BulkView(
            action=spec.action,
            dry_run=False,
            matched=len(ids),
            changed=changed,
            ids=list(ids[:1000]),
            errors=errors,
        )

    async def _matching(self, spec: BulkSpec, namespace: str | None) -> AsyncIterator[JobRow]:
        wanted = spec.filter
        if wanted.ids:
            for row in await self._store.get([JobId(job_id) for job_id in wanted.ids]):
                if row is not None and namespace in (None, row.job.namespace) and row.job.state != "deleted":
                    yield row
            return
        labels = tuple((key, value) for key, _, value in (label.partition(":") for label in wanted.label))
        query = JobQuery(
            namespace=namespace,
            name=wanted.name,
            labels=labels,
            state=wanted.state,
            task=wanted.task,
            schedule=wanted.schedule,
            q=wanted.q,
            limit=BULK_PAGE,
        )
        if query == JobQuery(namespace=namespace, limit=BULK_PAGE):
            raise InvalidInput.at("/filter", "name at least one filter; all jobs at once is never meant")
        while True:
            page = await self._store.page_jobs(query)
            for row in page.items:
                yield row
            if page.next is None:
                return
            query = replace(query, cursor=page.next)

    # -- runs -----------------------------------------------------------------------------------------------

    def _run_view(self, run: Run) -> RunView:
        return contract.run_view(run, progress=self.event_log.progress.get(run.key))

    async def _pair(self, run_id: str, namespace: str | None) -> tuple[Run, Job]:
        key = parse_run_id(run_id)
        found = None if key is None else (await self._store.load([key]))[0]
        if found is None or (namespace is not None and found[1].namespace != namespace):
            raise NotFound(f"there is no run {run_id[:120]!r}")
        return found

    async def list_runs(self, query: RunQuery) -> RunList:
        """A page of runs."""
        page = await self._store.page_runs(query)
        return RunList(
            items=[self._run_view(run) for run in page.items],
            next=page.next,
            partial=bool(page.missing),
            missing_shards=list(page.missing),
        )

    async def get_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """One run. Raises NotFound."""
        run, _ = await self._pair(run_id, namespace)
        return self._run_view(run)

    async def wait_run(self, run_id: str, *, namespace: str | None = None, timeout: int) -> RunView:
        """The run once it has ended, or as it is after `timeout` µs.

        This servicer wakes the caller when it commits the end itself; once a second it looks in the store, in
        case another servicer did.
        """
        deadline = self._clock.monotonic() + timeout
        run, _ = await self._pair(run_id, namespace)
        ended = self.event_log.waiter(run.key)
        try:
            while True:
                run, _ = await self._pair(run_id, namespace)
                left = deadline - self._clock.monotonic()
                if run.state.terminal or left <= 0:
                    return self._run_view(run)
                await self._clock.wait(ended, min(left, SECOND))
        finally:
            self.event_log.forget(run.key, ended)

    async def cancel_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """End a waiting run at once; ask for the end of one that is out. Raises Conflict when it has ended."""
        run, _ = await self._pair(run_id, namespace)
        if run.state.terminal and run.state != RunState.CANCELLED:
            raise Conflict(f"the run has ended as {run.state.word}")
        return self._run_view(await self._ask_cancel(run.key, "cancelled by request"))

    async def _ask_cancel(self, key: RunKey, reason: str) -> Run:
        for _ in range(TRIES):
            found = (await self._store.load([key]))[0]
            if found is None:
                raise NotFound
            run, job = found
            now = await self._store.now(self._store.shard_of(job.id))
            outcome = step(run, job, CancelAsked(reason), now)
            if isinstance(outcome, Refusal):
                if run.state.active:
                    await self._send_cancel(run, reason)
                return run
            if await self._store.apply([outcome]):
                continue
            after = outcome.run
            if after.state.terminal:
                self.telemetry.runs_ended([after])
                self.event_log.runs("run.finished", [(after, job)], now)
                await self._hint([(opened, job) for opened in outcome.opened], now, changed=[])
            else:
                await self._send_cancel(after, reason)
            return after
        raise Conflict("the run is changing; try again")

    async def _send_cancel(self, run: Run, reason: str) -> None:
        await self._broker.publish(inbox(run.worker), Cancel(key=run.key, attempt=run.attempt, reason=reason))

    async def retry_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """Run it again, as a new run of the job as it is now. Raises Conflict while the run has not ended."""
        run, job = await self._pair(run_id, namespace)
        if not run.state.terminal:
            raise Conflict(f"the run is {run.state.word}; only one that has ended can be run again")
        return self._run_view(await self._open_manual(job, retry_of=run.scheduled_at))

    async def explain_run(self, run_id: str, *, namespace: str | None = None) -> ExplainView:
        """Why the run is where it is."""
        run, job = await self._pair(run_id, namespace)
        now = await self._store.now(self._store.shard_of(job.id))
        stats = [shard for shard in await self._store.stats() if shard.shard == self._store.shard_of(job.id)]
        workers = stats[0].workers if stats else ()
        active = await self._active_runs(job.id) if run.state == RunState.WAITING else ()
        return explain(run, job, now, workers=workers, active=active)

    # -- files and logs -------------------------------------------------------------------------------------

    async def open_output(
        self, run_id: str, path: str, *, namespace: str | None = None
    ) -> tuple[contract.OutputView, AsyncIterator[bytes]]:
        """One file that the run left, streamed. Raises NotFound."""
        run, _ = await self._pair(run_id, namespace)
        return self.outputs.open(run, path)

    async def read_log(
        self, run_id: str, *, namespace: str | None = None, stream: str = "all", attempt: int | None = None
    ) -> AsyncIterator[bytes]:
        """What an attempt wrote so far; the last attempt, unless one is named."""
        run, _ = await self._pair(run_id, namespace)
        return self.outputs.log(run, stream, attempt)

    def follow_log(
        self, run_id: str, *, namespace: str | None = None, stream: str = "all", attempt: int | None = None
    ) -> AsyncIterator[contract.LogPiece]:
        """What an attempt writes, as it comes, until it ends. A waiting run is waited for."""
        return self._follow(run_id, namespace, stream, attempt)

    async def _follow(
        self, run_id: str, namespace: str | None, stream: str, attempt: int | None
    ) -> AsyncIterator[contract.LogPiece]:
        run, _ = await self._pair(run_id, namespace)
        while not run.state.terminal and run.state != RunState.RUNNING and (attempt or run.attempt + 1) > run.attempt:
            news = self.event_log.waiter(run.key)
            try:
                await self._clock.wait(news, SECOND // 5)
            finally:
                self.event_log.forget(run.key, news)
            run, _ = await self._pair(run_id, namespace)

        async def reload() -> Run:
            return (await self._pair(run_id, namespace))[0]

        async for piece in self.outputs.follow(run, stream, attempt, reload):
            yield piece

    async def put_blob(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int | None = None, expected: str | None = None
    ) -> BlobView:
        """Store bytes under their sha256. Raises TooLarge, InvalidInput when they are not `expected`."""
        most = self._max_blob_bytes if limit is None else min(limit, self._max_blob_bytes)
        digest, size = await self._blobs.put(data, limit=most, expected=expected)
        return BlobView(digest=digest, size=size)

    def open_blob(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """A blob's bytes, or a range of them. Raises NotFound at the first chunk."""
        return self._blobs.get(digest, start=start, end=end)

    async def blob_size(self, digest: str) -> int | None:
        """Its size, None if there is no such blob."""
        return await self._blobs.size(digest)

    # -- the rest -------------------------------------------------------------------------------------------

    def preview(self, spec: PreviewSpec) -> PreviewView:
        """The next times of a schedule. Raises InvalidInput that explains a bad one."""
        after = self._clock.wall() if spec.from_ is None else parse_instant(spec.from_, pointer="/from") - 1
        schedule = parse_schedule(
            spec.schedule,
            timezone=spec.timezone,
            dst=spec.dst,
            anchor=after,
            seed=spec.job_id,
            start=None if spec.start is None else parse_instant(spec.start, pointer="/start"),
            end=None if spec.end is None else parse_instant(spec.end, pointer="/end"),
            calendar=tuple(spec.calendar),
        )
        items = [
            OccurrenceView(at=format_instant(item.at), local=item.local, moved_by_dst=item.moved_by_dst, note=item.note)
            for item in preview(schedule, after, spec.count)
        ]
        return PreviewView(
            schedule=spec.schedule,
            timezone=spec.timezone,
            kind=schedule.kind,
            description=schedule.describe(),
            items=items,
        )

    async def stats(self) -> StatsView:
        """Counts over all shards, and the lateness that this servicer has seen."""
        shards = await self._store.stats()
        sketch = self.telemetry.sketch
        ended: dict[str, int] = {}
        for shard in shards:
            for state, count in shard.ended.items():
                ended[state] = ended.get(state, 0) + count
        missing = [shard.shard for shard in shards if shard.state != "up"]
        p50, p99 = sketch.quantile(0.5), sketch.quantile(0.99)
        return StatsView(
            jobs=sum(shard.jobs for shard in shards),
            waiting=sum(shard.waiting for shard in shards),
            dispatched=sum(shard.dispatched for shard in shards),
            running=sum(shard.running for shard in shards),
            ended=ended,
            lateness=LatenessView(
                count=sketch.count,
                p50_ms=None if p50 is None else p50 / 1000,
                p99_ms=None if p99 is None else p99 / 1000,
                max_ms=sketch.largest / 1000 if sketch.count else None,
                late=sketch.late,
            ),
            workers=len({worker.id for shard in shards for worker in shard.workers if worker.state == "ready"}),
            partial=bool(missing),
            missing_shards=missing,
        )

    async def workers(self) -> WorkerList:
        """All workers, as the freshest beat on any shard told them."""
        shards = await self._store.stats()
        newest: dict[str, contract.WorkerView] = {}
        for shard in shards:
            for worker in shard.workers:
                view = contract.worker_view(worker)
                if worker.id not in newest or newest[worker.id].beat_at < view.beat_at:
                    newest[worker.id] = view
        missing = [shard.shard for shard in shards if shard.state != "up"]
        return WorkerList(
            items=[newest[name] for name in sorted(newest)], partial=bool(missing), missing_shards=missing
        )

    async def shards(self) -> ShardList:
        """All shards with their counts and terms."""
        shards = await self._store.stats()
        missing = [shard.shard for shard in shards if shard.state != "up"]
        items = [
            ShardView(
                name=shard.shard,
                state=shard.state,
                slots=shard.slots,
                jobs=shard.jobs,
                waiting=shard.waiting,
                running=shard.running,
                term=contract.term_view(shard.term),
            )
            for shard in shards
        ]
        return ShardList(items=items, partial=bool(missing), missing_shards=missing)

    def events(self, after: str | None = None, *, namespace: str | None = None) -> AsyncIterator[EventView]:
        """What happens, as it happens; from the event after `after`, if it is still kept."""
        return self.event_log.follow(after, namespace)


def _view(row: JobRow) -> JobView:
    return contract.job_view(row.job, next_run_at=row.next_run_at, last_run=row.last_run, finished=row.finished)


def _opened(job: Job, now: int) -> Sequence[Run]:
    """The runs that a new job starts with: none while it is paused."""
    return (policy.opening_run(job, now),) if job.state == "active" else ()
