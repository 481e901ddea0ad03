"""What the process that owns a shard remembers of it: active runs and recently used jobs, both bounded.

Every report begins with `load`, of a run that was dispatched moments ago. Runs come from commits only, in commit
order. Jobs come from reads too, unless a change was committed while the read was going on.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Final

from duly.adapters.recent import Recent
from duly.adapters.rows import JobRow, to_job
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, RunState

MAX_RUNS: Final = 16_384
MAX_JOBS: Final = 32_768  # half of it outlasts what an agenda holds and what is out together

_WAITING: Final = RunState.WAITING.value
_SUCCEEDED: Final = RunState.SUCCEEDED.value


class Cache:
    """Written under a lock by the writer's thread after each commit, and by readers; looked up without one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: Recent[RunKey, Run] = Recent(MAX_RUNS)
        self._jobs: Recent[JobId, Job | bytes] = Recent(MAX_JOBS)
        self._changes = 0

    @property
    def changes(self) -> int:
        """Changes of jobs committed so far: take it before a read, give it back with what was read."""
        return self._changes

    def run(self, key: RunKey) -> Run | None:
        """An active run as it was last committed."""
        return self._runs.get(key)

    def job(self, job_id: JobId) -> Job | None:
        """A job as it was last committed."""
        changes = self._changes
        value = self._jobs.get(job_id)
        if isinstance(value, bytes):
            value = to_job(value)
            self.read(value, changes)
        return value

    def read(self, job: Job, changes: int) -> None:
        """Remember a job that was read since `changes`, unless it may have been changed meanwhile."""
        with self._lock:
            if changes == self._changes:
                self._jobs.put(job.id, job)

    def created(self, rows: Sequence[JobRow]) -> None:
        """Jobs were committed. Their documents are kept until they are asked for: most never are."""
        with self._lock:
            for row in rows[-MAX_JOBS:]:
                self._jobs.put(JobId(row[0]), row[-1])

    def changed(self, job_id: JobId) -> None:
        """A change of a job, or its removal, was committed."""
        with self._lock:
            self._changes += 1
            self._jobs.drop(job_id)

    def applied(self, transitions: Sequence[Transition], losers: Collection[int]) -> None:
        """Transitions were committed."""
        with self._lock:
            for i, transition in enumerate(transitions):
                if i in losers:
                    continue
                run = transition.run
                if _WAITING < run.state < _SUCCEEDED:
                    self._runs.put((run.job_id, run.scheduled_at), run)
                else:
                    self._runs.drop((run.job_id, run.scheduled_at))
