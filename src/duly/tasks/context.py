"""`current_run`: the run that the calling code belongs to.

from duly import current_run

@duly.job()
def resize(path: str) -> str:
    current_run.log.info("attempt %d, %.1f ms late", current_run.attempt, current_run.lateness * 1000)
    current_run.progress(0.5)
    (current_run.output / "small.png").write_bytes(...)   # kept with the run
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from duly.core.model import JobId, run_id
from duly.tasks.capture import LOG_FORMAT, Capture
from duly.tasks.wire import Item

if TYPE_CHECKING:
    from duly.tasks.once import Once

PROGRESS_EVERY: Final = 0.25  # seconds between two notices of progress of one run
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class RunContext:
    """What an executor knows of the run that it runs. Made for every run, so most of it only when asked for."""

    __slots__ = ("_capture", "_output", "_progress", "folder", "item", "report", "started")

    def __init__(self, item: Item, folder: str, report: Callable[[int, float, str], None]) -> None:
        self.item = item
        self.folder = folder
        self.report = report
        self.started = 0
        self._capture: Capture | None = None
        self._output: Path | None = None
        self._progress: _Progress | None = None

    @property
    def capture(self) -> Capture:
        """Its log files."""
        if self._capture is None:
            self._capture = Capture(stem_of(self.folder, self.item.job_id, self.item.scheduled_at, self.item.attempt))
        return self._capture

    @property
    def output(self) -> Path:
        """Its output folder, made now if it is new."""
        if self._output is None:
            stem = stem_of(self.folder, self.item.job_id, self.item.scheduled_at, self.item.attempt)
            self._output = Path(f"{stem}.output")
            self._output.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._output

    def tell(self, fraction: float, message: str) -> None:
        """Pass progress on, the latest of each quarter of a second."""
        if self._progress is None:
            self._progress = _Progress(self)
        self._progress.tell(fraction, message)

    def finish(self) -> tuple[str, str]:
        """End it; returns the stem of its log files and its output folder, "" for what was never used."""
        if self._progress is not None:
            self._progress.stop()
        capture = self._capture
        stem = ""
        if capture is not None and capture.used:
            capture.close()
            stem = capture.stem
        return stem, "" if self._output is None else str(self._output)


class _Progress:
    """The first word goes at once, later ones at most four times a second, and the last is never dropped."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._sent = float("-inf")
        self._latest: tuple[float, str] | None = None
        self._timer: threading.Timer | None = None

    def tell(self, fraction: float, message: str) -> None:
        with self._lock:
            wait = self._sent + PROGRESS_EVERY - time.monotonic()
            if wait <= 0 and self._timer is None:
                self._send(fraction, message)
                return
            self._latest = (fraction, message)
            if self._timer is None:
                self._timer = threading.Timer(max(wait, 0), self._later)
                self._timer.daemon = True
                self._timer.start()

    def _send(self, fraction: float, message: str) -> None:
        self._sent = time.monotonic()
        self._run.report(self._run.item.ticket, fraction, message)

    def _later(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            self._timer = None
            if self._latest is not None:
                self._send(*self._latest)
                self._latest = None

    def stop(self) -> None:
        """Say the last word before the run's outcome, and nothing after it."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._latest is not None:
                self._send(*self._latest)
                self._latest = None


def stem_of(folder: str, job_id: str, scheduled_at: int, attempt: int) -> str:
    """Where an attempt's log files and output lie: a path that needs no telling, and that no job id can bend."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in job_id)[:80]
    return f"{folder}/{safe}@{scheduled_at}.{attempt}"


running: Final[contextvars.ContextVar[RunContext | None]] = contextvars.ContextVar("duly_run", default=None)


class _Fallback:
    """For threads that a sync function starts: they have no context of their own, but its process runs one run."""

    run: Callable[[], RunContext | None] = staticmethod(lambda: None)


fallback: Final = _Fallback()


def running_now() -> RunContext | None:
    """The run whose code is executing, None outside of one."""
    return running.get() or fallback.run()


def capture_now() -> Capture | None:
    """Where the executing code's output goes, None outside of a run."""
    run = running_now()
    return None if run is None else run.capture


class _RunHandler(logging.Handler):
    """Writes records of `current_run.log` to the stderr of the run that is executing."""

    def emit(self, record: logging.LogRecord) -> None:
        capture = capture_now()
        if capture is not None:
            capture.write("stderr", (self.format(record) + "\n").encode("utf-8", "backslashreplace"))


class _RunLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        run = running_now()
        if run is not None:
            extra = {"run_id": run_id(JobId(run.item.job_id), run.item.scheduled_at), "attempt": run.item.attempt}
            kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return msg, kwargs


def _run_log() -> _RunLog:
    logger = logging.getLogger("duly.run")
    if not any(isinstance(handler, _RunHandler) for handler in logger.handlers):
        handler = _RunHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False  # or a root handler on the captured stderr would write it a second time
    return _RunLog(logger, {})


class CurrentRun:
    """The run that the calling code belongs to. RuntimeError outside of a run."""

    __slots__ = ()

    @property
    def _run(self) -> RunContext:
        run = running_now()
        if run is None:
            raise RuntimeError("current_run is known only inside a task that duly runs")
        return run

    def __bool__(self) -> bool:
        """True inside a run."""
        return running_now() is not None

    @property
    def id(self) -> str:
        """The run's id: the same for all its attempts, so an idempotency key for what it calls."""
        item = self._run.item
        return run_id(JobId(item.job_id), item.scheduled_at)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._run.item.job_id

    @property
    def attempt(self) -> int:
        """1 for the first try, 2 for the second, …"""
        return self._run.item.attempt

    @property
    def scheduled_at(self) -> datetime:
        """The occurrence's instant, in UTC: the same for all attempts."""
        return _EPOCH + timedelta(microseconds=self._run.item.scheduled_at)

    @property
    def due_at(self) -> datetime:
        """When this attempt was due to start, in UTC."""
        return _EPOCH + timedelta(microseconds=self._run.item.due_at)

    @property
    def lateness(self) -> float:
        """Seconds from due_at to the first instruction of this attempt."""
        run = self._run
        return (run.started + run.item.offset - run.item.due_at) / 1_000_000

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines are kept with the run (in its stderr), also where nothing else is captured."""
        self._run  # noqa: B018 - raises outside of a run
        return _run_log()

    @property
    def output(self) -> Path:
        """A folder for this attempt's output files; what is in it at the end is kept with the run."""
        return self._run.output

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the run has come, from 0 to 1. Cheap: at most four notices a second are sent."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is between 0 and 1, not {fraction}")
        self._run.tell(float(fraction), str(message)[:1000])

    def once(self, connection: Any) -> Once:
        """A transaction on the caller's own database whose effect commits at most once per run: see `once.py`."""
        from duly.tasks.once import Once

        return Once(connection, self.id, self.attempt)


current_run: Final = CurrentRun()
