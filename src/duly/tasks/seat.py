"""Where functions run, seen from the worker: a child process or a thread, each with tickets for what it holds.

Seat            tickets, what is out, and the board that tells what was started
├── ProcessSeat one warm child: frames over a socketpair; killed for sure, replaced when it dies
├── ThreadSeat  one thread of this process for sync functions: cannot be killed, only left behind
└── LoopSeat    one thread of this process with an event loop for coroutines
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from duly.tasks import child
from duly.tasks.attempt import Held
from duly.tasks.wire import (
    TICKETS,
    Answer,
    Board,
    Close,
    Command,
    Frames,
    Hello,
    Item,
    Kill,
    Retract,
    Work,
    answers,
    frame,
)

STUCK_AFTER: Final = 5_000  # µs in one run, after which nothing more is queued behind it


class Seat:
    """Tickets and what is out on them. `tell` gets every answer, `gone` the exit code when it has died."""

    killable = False
    wide = False  # many runs at a time

    def __init__(self, tell: Callable[[Seat, Answer], None], gone: Callable[[Seat, int], None]) -> None:
        self.out: list[Held | None] = [None] * TICKETS
        self.free = list(range(TICKETS - 1, -1, -1))
        self.count = 0
        self.queued = 0  # of those, the ones that were due when they were placed
        self.begun = 0  # of those, the ones known to run
        self.batch: list[Item] = []
        # Retracts under way: serial → the runs named (none for "all"), and whether only unstarted ones were meant.
        self.asked: dict[int, tuple[Sequence[Held], bool]] = {}
        self.ready = False
        self.parked = False  # its slot is lent to a command
        self.left = False  # abandoned: its outcomes are nobody's any more
        self._serial = 0
        self._tell = tell
        self._gone = gone
        self.board: Board = None  # type: ignore[assignment]  # set by each kind of seat before anything is placed

    def busy_since(self) -> int:
        """Since when it runs what it runs, 0 if it does not."""
        words = self.board.words
        return words[1] if words[0] else 0

    def stuck(self, now: int) -> bool:
        """It has been in one run for longer than a moment."""
        since = self.busy_since()
        return bool(since) and now - since > STUCK_AFTER

    def running(self) -> Held | None:
        """What it runs at this moment (sync functions)."""
        word = self.board.words[0]
        return self.out[word - 1] if word else None

    def put(self, held: Held, due_now: bool) -> None:
        """Give it a run; `send` passes on what was put."""
        ticket = self.free.pop()
        self.out[ticket] = held
        self.board.flags[ticket] = 0
        self.count += 1
        held.place = self
        held.ticket = ticket
        if due_now:
            held.queued = True
            self.queued += 1
        task, run = held.task, held.run
        self.batch.append(
            Item(
                ticket,
                held.due,
                task.name,
                bytes(task.args),
                bytes(task.kwargs),
                run.job_id,
                run.scheduled_at,
                run.due_at,
                run.attempt,
                held.offset,
                held.barred,
            )
        )

    def take(self, ticket: int) -> Held | None:
        """Its ticket comes back; returns the run that was on it."""
        held = self.out[ticket]
        self.free.append(ticket)
        if held is not None:
            self.forget(held)
        return held

    def forget(self, held: Held) -> None:
        """Leave a run behind that cannot be ended: its ticket stays out until its outcome comes."""
        self.out[held.ticket] = None
        self.count -= 1
        held.place = None
        if held.announced:
            self.begun -= 1
        if held.queued:
            held.queued = False
            self.queued -= 1

    def send(self) -> None:
        """Pass on what was put."""
        if self.batch:
            items, self.batch = self.batch, []
            self._work(items)

    def retract(self, named: Sequence[Held] | None = None, *, unless_started: bool = False) -> None:
        """Ask for these runs, or all, unless they were started. The answer tells."""
        self._serial += 1
        self.asked[self._serial] = (named or (), unless_started)
        self._retract(self._serial, None if named is None else [held.ticket for held in named])

    def _work(self, items: list[Item]) -> None:
        raise NotImplementedError

    def _retract(self, serial: int, tickets: list[int] | None) -> None:
        raise NotImplementedError

    def interrupt(self, held: Held) -> None:
        """Ask a run that has been started to end."""

    def kill(self) -> None:
        """End it at once, with whatever it runs."""

    def abandon(self) -> None:
        """Use it no more; it ends by itself once what it runs has ended."""

    async def close(self, grace: float) -> None:
        """End it: softly for `grace` seconds, then surely."""


class ProcessSeat(Seat):
    """A warm child process."""

    killable = True

    def __init__(
        self, tell: Callable[[Seat, Answer], None], gone: Callable[[Seat, int], None], spec: child.Spec
    ) -> None:
        super().__init__(tell, gone)
        self.wide = spec.mode == "async"
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self._link, self._theirs = socket.socketpair()
        self._link.setblocking(False)
        self._memory = Board.memory()
        self.board = Board(self._memory)
        self._spec = spec
        self._frames = Frames()
        self._backlog = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._killed = False
        self._dead = asyncio.Event()
        self._loop.add_reader(self._link, self._readable)
        self._spawning = self._loop.create_task(self._spawn())

    async def _spawn(self) -> None:
        import msgspec

        spec = msgspec.structs.replace(self._spec, socket=self._theirs.fileno(), board=self._memory)
        try:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                child.arguments(spec),
                stdin=subprocess.DEVNULL,
                pass_fds=(self._theirs.fileno(), self._memory),
                start_new_session=True,  # its own group, so that what a function started dies with it
            )
        except OSError:
            self._end(127)
            return
        finally:
            self._theirs.close()
            os.close(self._memory)
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._died)
        if self._killed:
            self.kill()

    # -- frames ---------------------------------------------------------------------------------------------

    def _write(self, command: Command) -> None:
        data = frame(command)
        if self._backlog:
            self._backlog += data
            return
        try:
            sent = self._link.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # dead: `_died` moves what it held
        if sent < len(data):
            self._backlog += data[sent:]
            self._loop.add_writer(self._link, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._link.send(self._backlog)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._backlog)
        del self._backlog[:sent]
        if not self._backlog:
            self._loop.remove_writer(self._link)

    def _readable(self) -> bool:
        try:
            data = self._link.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._link)
            if self._process is not None:
                self.kill()  # it closed the socket and can be told nothing any more
            return False
        for view in self._frames.feed(data):
            answer = answers.decode(view)
            if isinstance(answer, Hello):
                self.ready = not answer.error
            self._tell(self, answer)
        return True

    def _work(self, items: list[Item]) -> None:
        self._write(Work(items))

    def _retract(self, serial: int, tickets: list[int] | None) -> None:
        self._write(Retract(serial, tickets))

    # -- ends -----------------------------------------------------------------------------------------------

    def interrupt(self, held: Held) -> None:
        """A signal that raises in the function, or a cancel of the coroutine."""
        if self.wide:
            self._write(Kill(held.ticket))
        elif self.pid:
            self.board.words[2] = held.ticket + 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the child and its group."""
        self._killed = True
        if self.pid and not self._dead.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _died(self) -> None:
        while self._readable():  # outcomes that it told before its end
            pass
        assert self._process is not None
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what its functions started
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._end(code)

    def _end(self, code: int) -> None:
        self._loop.remove_reader(self._link)
        self._loop.remove_writer(self._link)
        self._link.close()
        self._dead.set()
        self._gone(self, code)
        self.board.close()

    async def close(self, grace: float) -> None:
        """Let it end by itself for `grace` seconds, then kill it; returns when it is dead."""
        await self._spawning
        if not self._dead.is_set():
            self._write(Close())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dead.wait(), grace)
            self.kill()
        await self._dead.wait()
