"""The machine's clock is set under a real duly: its file, its threads, real time; only the wall clock is ours."""

from __future__ import annotations

import threading
from pathlib import Path

from duly.adapters.system_clock import SystemClock
from duly.boot import assemble
from duly.core.contract import JobSpec
from duly.core.definition import decode
from duly.core.instants import DAY, HOUR, MILLISECOND, SECOND
from duly.core.model import JobId, Run, RunState
from duly.core.policy import schedule_of
from duly.ports import RunQuery
from duly.settings import Settings
from duly.tasks.context import current_run
from duly.tasks.registry import FunctionRegistry


class SetClock(SystemClock):
    """The system's clock, as someone else has set it."""

    def __init__(self) -> None:
        self.skew = 0

    def wall(self) -> int:
        return super().wall() + self.skew


async def test_a_real_duly_lives_through_steps(tmp_path: Path) -> None:
    """An hour and a day, forward and back: each attempt starts once, each occurrence is on record, no lease is lost."""
    clock = SetClock()
    began: list[tuple[str, int]] = []
    noting = threading.Lock()

    def note() -> None:
        with noting:
            began.append((str(current_run.id), current_run.attempt))

    registry = FunctionRegistry()
    registry.add(note, "app:note")
    settings = Settings(dir=str(tmp_path / "data"), functions_in="threads", slots=4)
    node = assemble(settings, registry, clock)
    await node.start()
    try:

        async def create(schedule: str, extra: bytes = b"") -> JobId:
            text = b'{"task":{"kind":"function","name":"app:note"},"schedule":"%b"%b}' % (schedule.encode(), extra)
            return JobId((await node.servicer.create_job(decode(text, JobSpec)))[0].id)

        async def runs(job_id: JobId) -> list[Run]:
            found: list[Run] = []
            cursor = None
            while True:
                query = RunQuery(job_id=job_id, oldest_first=True, limit=1000, cursor=cursor)
                page = await node.store.page_runs(query)
                found += page.items
                cursor = page.next
                if cursor is None:
                    return found

        async def succeeds(job_id: JobId) -> Run:
            for _ in range(2_000):
                [run] = await runs(job_id)
                if run.state == RunState.SUCCEEDED:
                    return run
                await clock.sleep(5 * MILLISECOND)
            raise AssertionError(f"not within ten seconds: {run}")

        ticking = await create("every 200ms", b',"overlap":"allow","misfire":"run_latest","keep":{"runs":100000}')
        await succeeds(await create("in 500ms"))
        far = await create("in 30m")
        fence = node.schedulers[0].term
        highest = clock.wall()
        for step in (HOUR, -HOUR, DAY, -DAY):
            clock.skew += step
            soon = await succeeds(await create("in 700ms"))
            assert soon.lateness is not None
            assert 0 <= soon.lateness < 5 * SECOND, (step, soon.lateness)
            highest = max(highest, clock.wall())
        late = await succeeds(far)
        assert (late.late, late.late_cause) == (True, "clock")
        term = node.schedulers[0].term
        assert (term and term.fence) == (fence and fence.fence), "the term was lost"
        ticks = await runs(ticking)
        job = (await node.store.get([ticking]))[0]
        assert job is not None
        horizon = highest - 2 * SECOND
        named = {run.scheduled_at for run in ticks}
        covered = [(run.scheduled_at, run.covers_until) for run in ticks if run.covers_until is not None]
        first = min(named)
        owed = schedule_of(job.job).between(first - 1, horizon, 1_000_000)
        silent = [at for at in owed if at not in named and not any(a <= at <= b for a, b in covered)]
        assert not silent, (len(silent), silent[:3])
        assert len(named) == len(ticks)
        assert not [run for run in ticks if any(attempt.state == "lost" for attempt in run.attempts)]
    finally:
        await node.stop()
    assert len(began) == len(set(began)), "an attempt began twice"
