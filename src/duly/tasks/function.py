"""Function tasks: the worker's side. Sync functions have seats of their own, coroutine functions share one.

| functions run in | sync function | coroutine function | a run that will not end |
|---|---|---|---|
| processes | warm children, one run at a time each | one warm child, one event loop | its child is killed |
| threads | threads of this program | a thread with an event loop | left behind, counted, at most 16 |

Processes start with the worker's own interpreter and module path and import its apps. A function that lives in the
program's own script (`__main__`) runs in threads as it is; in processes the script is run again under the name
`__duly_main__`, as multiprocessing does, so what it does at its top must be guarded by `if __name__ == "__main__"`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

from duly.core.model import Failure
from duly.ports import Blobs
from duly.tasks import child
from duly.tasks.attempt import Held, Sink, Stage, Tempo
from duly.tasks.context import stem_of
from duly.tasks.executor import microseconds
from duly.tasks.outputs import Refused, keep_logs, keep_outputs, remove, remove_logs
from duly.tasks.pool import Pool
from duly.tasks.registry import FunctionRegistry
from duly.tasks.seat import ProcessSeat, Seat
from duly.tasks.threads import LoopSeat, ThreadSeat
from duly.tasks.wire import Done

FunctionsIn = Literal["processes", "threads"]

_WARM = 4  # children brought up ahead of need; more come as they are needed


class FunctionRunner:
    """Runs function tasks. `tempos`: what the process and the async lane measure."""

    def __init__(
        self,
        sink: Sink,
        blobs: Blobs,
        stage: Stage,
        *,
        functions: FunctionRegistry,
        apps: Sequence[str] = (),
        functions_in: FunctionsIn = "processes",
        async_slots: int = 1_000,
        tempos: tuple[Tempo, Tempo] | None = None,
    ) -> None:
        self.sink = sink
        self._blobs = blobs
        self._stage = stage
        self._functions = functions
        self._apps = list(apps)
        self._in: FunctionsIn = functions_in
        self._async_slots = async_slots
        sync_tempo, async_tempo = tempos or (Tempo(), Tempo())
        self._folder = str(Path(stage.scratch) / "functions")
        self.sync = Pool(self, self._make_sync, stage.slots, sync_tempo, stage.grace)
        self.wide = Pool(self, self._make_wide, 1, async_tempo, stage.grace)
        self._storing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring up the seats that will surely be needed."""
        await asyncio.to_thread(os.makedirs, self._folder, 0o700, exist_ok=True)
        if self._in == "processes":
            modes = {self._functions.mode(name) for name in self._functions}
            anything = self._functions.policy == "any"
            if anything or "sync" in modes:
                self.sync.warm(_WARM)
            if anything or "async" in modes:
                self.wide.warm(1)

    def _make_sync(self, pool: Pool) -> Seat:
        if self._in == "processes":
            return ProcessSeat(pool.tell, pool.gone, self._spec("sync"))
        return ThreadSeat(pool.tell, pool.gone, self._functions, self._stage, self._folder)

    def _make_wide(self, pool: Pool) -> Seat:
        if self._in == "processes":
            return ProcessSeat(pool.tell, pool.gone, self._spec("async"))
        return LoopSeat(pool.tell, pool.gone, self._functions, self._stage, self._folder, self._async_slots)

    def _spec(self, mode: str) -> child.Spec:
        in_main = any(name.startswith("__main__:") for name in self._functions) or any(
            app.startswith("__main__:") for app in self._apps
        )
        script = getattr(sys.modules.get("__main__"), "__file__", None) if in_main else None
        return child.Spec(
            socket=-1,
            board=-1,
            mode=mode,
            path=[str(Path(entry).absolute()) for entry in sys.path],  # "" is the working directory
            apps=self._apps,
            folder=self._folder,
            spin=self._stage.spin,
            limit=self._async_slots,
            shares_clock=self._stage.shares_clock,
            script=str(Path(script).absolute()) if script else "",
        )

    # -- Runner ---------------------------------------------------------------------------------------------

    def stage(self, batch: Sequence[Held]) -> None:
        """Take runs of functions."""
        sync: list[Held] = []
        wide: list[Held] = []
        modes, anything = self._functions.mode, self._functions.policy == "any"
        for held in batch:
            task = held.task
            mode = modes(task.name)
            if mode is None:
                held.barred = not anything
                mode = task.mode
            if mode == "async":
                held.mode = "async"
                wide.append(held)
            else:
                sync.append(held)
        if sync:
            self.sync.stage(sync)
        if wide:
            self.wide.stage(wide)

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        """End a run."""
        (self.wide if held.mode == "async" else self.sync).stop(held, unless_started=unless_started)

    def log_path(self, held: Held, stream: str) -> str | None:
        """Where its stream is written."""
        run = held.run
        path = f"{stem_of(self._folder, run.job_id, run.scheduled_at, run.attempt)}.{stream}"
        return path if Path(path).exists() else None

    def occupied(self) -> int:
        """Seats in a run that lasts."""
        return self.sync.occupied(microseconds())

    async def close(self) -> None:
        """End every seat and store what has ended."""
        await asyncio.gather(self.sync.close(0.5), self.wide.close(0.5))
        if self._storing:
            await asyncio.gather(*self._storing, return_exceptions=True)

    # -- outcomes that are more than a result ---------------------------------------------------------------

    def ended(self, held: Held, done: Done) -> None:
        """Tell it at once, or when its files are stored."""
        if done.files or done.output:
            self._later(self._store(held, done))
        else:
            self._tell(held, done, {}, None)

    def _tell(self, held: Held, done: Done, logs: dict[str, str], refused: Refused | None, outputs: Any = ()) -> None:
        if refused is not None and done.fault is None:
            self.sink.failed(
                held,
                done.finished,
                refused.failure(),
                started=done.started,
                logs=logs,
                retryable=False,
            )
        elif done.fault is None:
            self.sink.succeeded(held, done.started, done.finished, done.result, outputs=outputs, logs=logs)
        else:
            fault = done.fault
            error = Failure(kind=fault.kind, message=fault.message, detail=fault.detail)
            self.sink.failed(
                held,
                done.finished,
                error,
                started=done.started,
                outputs=outputs,
                logs=logs,
                retryable=fault.retryable,
            )

    async def _store(self, held: Held, done: Done) -> None:
        logs: dict[str, str] = {}
        outputs: tuple[Any, ...] = ()
        refused: Refused | None = None
        try:
            if done.files:
                logs = await keep_logs(done.files, self._blobs)
            if done.output:
                outputs = await keep_outputs(Path(done.output), self._blobs, self._stage.max_output)
        except Refused as error:
            refused = error
        except Exception as error:  # noqa: BLE001 - whatever the blob store raises, the run must end
            message = f"its output could not be stored: {error}"
            self.sink.failed(held, done.finished, Failure(kind="limit", message=message), started=done.started)
            return
        finally:
            with contextlib.suppress(OSError):
                remove_logs(done.files)
            if done.output:
                await asyncio.to_thread(remove, done.output)
        self._tell(held, done, logs, refused, outputs)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
