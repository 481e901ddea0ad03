"""What a job has behind it, noted in the job when it is changed: history is pruned, and clocks are set back.

    one-time    `spent`     its instant, once its run has begun or ended
    after …     `spent`     that of its first run, or the end of the run before the one that waits
    recurring   `reached`   the occurrence before the one that waits: no change opens an earlier one
                `ahead`     one that was cancelled ahead of its time: behind the job once that has come
                `since`     after which those that wait were opened: the one before it has not been if it is no later

The first two are told by the run that an active job has waiting, so nothing has to be written when runs end
(decision 0021).
"""

from __future__ import annotations

from msgspec.structs import replace

from duly.core import policy
from duly.core.model import Job, JobId, Run, RunState
from duly.ports import RunQuery, Store


async def unbegun_runs(store: Store, job_id: JobId) -> list[Run]:
    """The waiting runs of the schedule that have had no attempt."""
    query = RunQuery(job_id=job_id, states=(RunState.WAITING,), oldest_first=True, limit=1000)
    return [run for run in (await store.page_runs(query)).items if run.attempt == 0 and not run.manual]


async def noted(store: Store, before: Job, job: Job, now: int) -> tuple[Job, frozenset[int] | None]:
    """The changed job with what it has behind it as `before`; and the waiting runs that must still be so for this."""
    if before.state != "active":
        return job, None
    schedule = policy.schedule_of(before)
    unbegun = frozenset(run.scheduled_at for run in await unbegun_runs(store, job.id))
    if schedule.kind in ("once", "delay"):  # all but the first of a fixed delay are named by ends, which do not recur
        run = policy.once_run(before)  # it was opened with the job: if it does not wait, it has been
        if run is None:
            return job, None
        after = schedule.after_completion(min(unbegun)) if unbegun else None
        if after is not None and run.scheduled_at not in unbegun:  # what waits was named by the end of the one before
            return replace(job, spent=max(run.scheduled_at, 2 * min(unbegun) - after)), unbegun
        return (job if run.scheduled_at in unbegun else replace(job, spent=run.scheduled_at)), unbegun
    behind = schedule.latest_until(min(unbegun) - 1) if unbegun else None
    since = before.created_at - 1 if before.since is None else before.since
    if behind is not None and since < behind and now < behind:
        # Either it ended ahead of its time, of which there is a record until then, or the clock was set back since.
        found = (await store.load([(job.id, behind)]))[0]
        if found is not None and not found[0].attempt and (found[0].finished_at or behind) < behind:
            job, behind = replace(job, ahead=behind), now
    if behind is None or behind <= since:  # none has been since they were opened
        return job, None
    return replace(job, reached=max(before.reached, behind)), None
