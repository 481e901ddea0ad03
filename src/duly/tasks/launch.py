"""Supervises one command: run by path as `python -I -S launch.py <descriptor>`, standard library only.

    worker ◀── control socket ──▶ supervisor ── fork, ahead of time ──▶ program-to-be ── at the instant: exec

The program's process exists before its instant, in its own session, with its files and descriptors in place; it
waits for "go", then for the instant with microseconds, sets its limits and execs. The supervisor keeps its output
(10 MiB of each stream, the rest is read and dropped), and as child subreaper inherits everything that the program
leaves behind, daemons with a session of their own too: when the program ends, when it is told to, or when the
worker's end of the socket closes, it kills them all and then ends itself.

Control, worker → supervisor: spec (4-byte length + JSON), then `G` + instant (8 bytes, µs), `T` terminate, `K` kill.
Supervisor → worker, lines of JSON: {"ready": pid} · {"started": ns} · {"refused": errno} · {"crowded": true} ·
{"status": …, "finished": ns, "cpu": s}.

Processes are counted, as RLIMIT_NPROC counts those of a user and not at all those of root: ten times a second, and only
when the machine has become so much fuller that the tree may be too large, or every five seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

SPIN = 0.0003  # seconds
LOOK = 0.1  # seconds between two looks at how full the machine is
COUNT = 5.0  # seconds, at most, between two counts of the tree on a machine that is full enough
CUT = b"\n[duly: the rest was cut: a stream is kept up to 10 MiB]\n"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
LIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "memory": resource.RLIMIT_AS,
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
}


def main() -> None:
    """Serve one command."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    size = struct.unpack(">I", receive(control, 4))[0]
    Supervisor(control, prctl, json.loads(receive(control, size))).work()


def receive(link: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; ends the process when the worker is gone."""
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def tasks_of_machine() -> int:
    """Threads of all processes; very many where it cannot be told."""
    try:
        with open("/proc/loadavg", "rb") as file:  # noqa: PTH123 - pathlib costs 10 ms of the start
            return int(file.read().split()[3].partition(b"/")[2])
    except (OSError, ValueError, IndexError):
        return 1 << 30


class Stream:
    """One captured stream: a pipe that is always drained and a file that takes the first `limit` bytes."""

    def __init__(self, path: str, limit: int) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.path, self.room, self.file = path, limit, -1

    def drain(self) -> bool:
        """Take what there is, a bounded piece at a time; False once nothing can come any more."""
        for _ in range(16):
            try:
                data = os.read(self.read, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self.file < 0:
                self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            if self.room >= 0:
                kept = data if len(data) <= self.room else data[: self.room] + CUT
                self.room -= len(data)
                try:
                    while kept:
                        kept = kept[os.write(self.file, kept) :]
                except OSError:  # the disk is full: the program goes on, its log does not
                    self.room = -1
        return True


class Supervisor:
    """The program, its streams and its descendants."""

    def __init__(self, control: socket.socket, prctl: Callable[..., int], spec: dict[str, Any]) -> None:
        self.control, self.prctl, self.spec = control, prctl, spec
        self.streams = [Stream(spec["stdout"], spec["keep"]), Stream(spec["stderr"], spec["keep"])]
        self.go_read, self.go_write = os.pipe()
        self.said_read, self.said_write = os.pipe()
        self.status: int | None = None
        self.finished = 0
        self.commands = b""
        self.crowded = False
        self.looked = self.counted = time.monotonic()
        self.counted_tasks = tasks_of_machine()
        self.counted_tree = 0
        bell, ring = os.pipe()
        for end in (bell, ring):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        self.bell = bell
        self.pid = os.fork()
        if self.pid == 0:
            number = errno.EINVAL
            try:
                self.become_program()
            except OSError as error:
                number = error.errno or errno.EINVAL
            finally:
                os.write(self.said_write, struct.pack(">cq", b"E", number))
                os._exit(127)
        for end in (self.go_read, self.said_write, *(stream.write for stream in self.streams)):
            os.close(end)
        self.tell(ready=self.pid)

    def tell(self, **what: float) -> None:
        """A line to the worker."""
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps(what).encode() + b"\n")

    # -- in the program's process ---------------------------------------------------------------------------

    def become_program(self) -> None:
        """Wait for the instant and exec."""
        spec = self.spec
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number in signal.valid_signals():
            if signal.getsignal(number) == signal.SIG_IGN:  # by Python, or by nohup: exec would pass it on
                signal.signal(number, signal.SIG_DFL)
        self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.chdir(spec["work"])
        os.umask(0o077)
        source = os.open(spec["stdin"] or "/dev/null", os.O_RDONLY)
        os.dup2(source, 0)
        os.dup2(self.streams[0].write, 1)
        os.dup2(self.streams[1].write, 2)
        told = os.read(self.go_read, 8)
        if len(told) < 8:
            os._exit(0)
        due = struct.unpack(">q", told)[0]
        wait = due / 1e6 - time.monotonic() - SPIN
        if wait > 0:
            select.select([], [], [], wait)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name, value in spec["limits"].items():
            hard = value + 1 if name == "cpu" else value  # SIGXCPU at the soft limit, SIGKILL a second later
            most = resource.getrlimit(LIMITS[name])[1]
            if most != resource.RLIM_INFINITY:
                value, hard = min(value, most), min(hard, most)
            resource.setrlimit(LIMITS[name], (value, hard))
        while time.monotonic_ns() < due * 1000:
            pass
        os.write(self.said_write, struct.pack(">cq", b"S", time.monotonic_ns()))
        os.execve(spec["program"], spec["argv"], spec["env"])  # noqa: S606 - that is the point

    # -- in the supervisor ----------------------------------------------------------------------------------

    def work(self) -> None:
        """Until the program has ended, or has to."""
        poll = select.poll()
        open_streams = {stream.read: stream for stream in self.streams}
        for descriptor in (self.control.fileno(), self.bell, self.said_read, *open_streams):
            poll.register(descriptor, select.POLLIN)
        while self.status is None:
            for descriptor, _ in poll.poll(LOOK * 1000):
                if descriptor == self.control.fileno():
                    self.obey()
                elif descriptor == self.bell:
                    os.read(self.bell, 4096)
                    self.reap()
                elif descriptor == self.said_read:
                    if not self.listen():
                        poll.unregister(descriptor)
                elif not open_streams[descriptor].drain():
                    poll.unregister(descriptor)
            if self.is_crowded():
                self.crowded = True
                self.tell(crowded=True)
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, 0, -20)  # where it is allowed: it races with what it kills
                self.kill_all()
        while self.listen():
            pass
        self.kill_all()
        for stream in self.streams:
            until = time.monotonic() + 5
            while stream.drain() and time.monotonic() < until:  # all writers are dead: this ends with their last byte
                pass
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.tell(status=self.status, finished=self.finished, cpu=used.ru_utime + used.ru_stime)
        os._exit(0)

    def listen(self) -> bool:
        """What the program's process said of its start."""
        said = os.read(self.said_read, 9)
        if len(said) < 9:
            return False
        kind, value = struct.unpack(">cq", said)
        self.tell(**({"started": value} if kind == b"S" else {"refused": value}))
        return True

    def obey(self) -> None:
        """What the worker says; its silence means that it is gone."""
        try:
            data = self.control.recv(4096)
        except OSError:
            data = b""
        if not data:
            self.kill_all()
            os._exit(0)
        self.commands += data
        while self.commands:
            verb = self.commands[:1]
            if verb == b"G":
                if len(self.commands) < 9:
                    return
                with contextlib.suppress(OSError):
                    os.write(self.go_write, self.commands[1:9])
                self.commands = self.commands[9:]
                continue
            self.commands = self.commands[1:]
            if verb == b"T":
                self.signal_group(signal.SIGTERM)
            elif verb == b"K":
                self.kill_all()

    def is_crowded(self) -> bool:
        """True once the tree has more processes than it may."""
        now = time.monotonic()
        if now - self.looked < LOOK or self.crowded:
            return False
        self.looked = now
        tasks = tasks_of_machine()
        most: int = self.spec["processes"]
        if tasks < most:
            return False
        if self.counted_tree + tasks - self.counted_tasks < most // 2 and now - self.counted < COUNT:
            return False
        self.counted, self.counted_tasks = now, tasks
        self.counted_tree = len(self.descendants())
        return self.counted_tree > most

    def signal_group(self, number: int) -> None:
        """To the program and what stayed in its group."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, number)

    def reap(self) -> bool:
        """Bury the dead, and note how the program ended. False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.finished = time.monotonic_ns()
                self.status = os.waitstatus_to_exitcode(status)

    def kill_all(self) -> None:
        """SIGKILL to every descendant until there is none."""
        while self.reap():
            self.signal_group(signal.SIGKILL)
            for pid in self.descendants():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            for stream in self.streams:
                stream.drain()
            select.select([self.bell], [], [], 0.01)
            with contextlib.suppress(BlockingIOError):
                os.read(self.bell, 4096)

    def descendants(self) -> list[int]:
        """Everything below this process: what lost its parent has become a child of this one."""
        parents = {}
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs 10 ms of the start
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - as above
                        parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
                except (OSError, ValueError, IndexError):
                    continue
        below, found = {os.getpid()}, []
        grown = True
        while grown:
            grown = False
            for pid, parent in parents.items():
                if parent in below and pid not in below:
                    below.add(pid)
                    found.append(pid)
                    grown = True
        return found


if __name__ == "__main__":
    main()
