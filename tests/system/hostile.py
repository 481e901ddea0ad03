"""Commands that do their worst, each with how it has to end; run against a real server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from duly import Duly
from duly.core.contract import RunView
from duly.core.instants import SECOND, parse_instant
from system.served import until

MIB = 1 << 20
ENDED = ("succeeded", "failed", "cancelled", "lost", "quarantined")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A command and its end: the state, the kind of the error, a part of what it says."""

    name: str
    code: str  # Python
    state: str = "failed"
    kind: str = ""
    says: str = ""
    log: str = ""  # a part of its standard output
    limits: dict[str, Any] = {}
    job: dict[str, Any] = {}


class Row(msgspec.Struct, frozen=True):
    """What came of a case."""

    name: str
    end: str
    took: float  # seconds
    grew: float  # MiB, of the server
    left: int  # processes
    next_state: str
    next_late: float  # ms


FORKS = """
import os, time
deep = 0
while deep < 12:                 # as a bomb goes, but no more than 4,096: the machine is shared
    if os.fork() == 0:
        {escape}
    deep += 1
time.sleep(60)
"""
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        for number in range(3): os.close(number)
        time.sleep(300)
    os._exit(0)
os.wait()
print("daemon left")
"""
CASES = [
    Case(name="fork bomb", code=FORKS.format(escape="pass"), kind="limit", says="processes"),
    Case(
        name="fork bomb, each in a session of its own",
        code=FORKS.format(escape="os.setsid()"),
        kind="limit",
        says="processes",
    ),
    Case(
        name="10,000 zombies",
        kind="limit",
        says="processes",
        code="import os, time\nfor _ in range(10000):\n  if os.fork() == 0: os._exit(0)\ntime.sleep(20)",
    ),
    Case(
        name="1 GB of output",
        state="succeeded",
        code="import os\nb = b'x' * (1 << 20)\nfor _ in range(1000): os.write(1, b)",
    ),
    Case(
        name="ignores SIGTERM",
        kind="timeout",
        says="timeout",
        job={"timeout": "500ms"},
        code="import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    ),
    Case(
        name="ignores every signal it can",
        kind="timeout",
        says="timeout",
        job={"timeout": "500ms"},
        code="import signal, time\nfor n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
    ),
    Case(
        name="fills its file-size limit",
        kind="limit",
        says="file",
        limits={"file_size": MIB},
        code="import signal\nsignal.signal(25, signal.SIG_DFL)\nopen('big', 'wb').write(b'x' * (2 << 20))",
    ),
    Case(name="uses up its CPU", kind="limit", says="CPU", limits={"cpu": "1s"}, code="while True: pass"),
    Case(
        name="allocates beyond its limit",
        kind="exit",
        says="exited with 1",
        limits={"memory": 256 * MIB},
        code="a = []\nwhile True: a.append(bytearray(1 << 24))",
    ),
    Case(
        name="opens all files it can",
        kind="exit",
        says="exited with 1",
        code="f = [open('/dev/null') for _ in range(5000)]",
    ),
    Case(name="exits by SIGSEGV", kind="signal", says="SIGSEGV", code="import os\nos.kill(os.getpid(), 11)"),
    Case(name="aborts", kind="signal", says="SIGABRT", code="import os\nos.abort()"),
    Case(name="exits with 255", kind="exit", says="255", code="raise SystemExit(255)"),
    Case(
        name="stops itself",
        kind="timeout",
        says="timeout",
        job={"timeout": "500ms"},
        code="import os\nos.kill(os.getpid(), 19)",
    ),
    Case(
        name="leaves a daemon (double fork, setsid, no environment)", state="succeeded", code=DAEMON, log="daemon left"
    ),
    Case(
        name="kills its supervisor each time",
        state="quarantined",
        kind="signal",
        says="supervisor",
        job={"retry": {"max_attempts": 3, "base": "10ms", "backoff": "constant"}},
        code="import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)",
    ),
    Case(name="closes stdin, stdout, stderr", state="succeeded", code="import os\nfor n in range(3): os.close(n)"),
    Case(
        name="hands its stdout to one that stays",
        state="succeeded",
        code="import os, time\nif os.fork() == 0: time.sleep(60)",
    ),
    Case(
        name="NULs, bad UTF-8, escapes, no newline",
        state="succeeded",
        log="\x00\ufffd\ufffd\x1b[2Jend",
        code="import os\nos.write(1, b'\\0\\xff\\xfe\\x1b[2Jend')",
    ),
    Case(name="writes outside: ../../x", state="succeeded", code="open('output/../../x', 'w').write('x')"),
    Case(
        name="output: a path with ..",
        kind="input",
        says="symbolic link",
        code="import os\nos.symlink('..', 'output/up')",
    ),
    Case(
        name="output: absolute link",
        kind="input",
        says="symbolic link",
        code="import os\nos.symlink('/etc/passwd', 'output/x')",
    ),
    Case(
        name="output: hard link",
        kind="input",
        says="hard link",
        code="import os\nopen('a', 'w').close()\nos.link('a', 'output/x')",
    ),
    Case(
        name="output: control characters",
        kind="input",
        says="control",
        code="open('output/a\\x01\\r\\nb', 'w').close()",
    ),
    Case(
        name="output: right-to-left override",
        kind="input",
        says="direction",
        code="open('output/\\u202etxt.exe', 'w').close()",
    ),
    Case(name="output: not UTF-8", kind="input", says="UTF-8", code="open(b'output/\\xff', 'w').close()"),
    Case(name="output: fifo", kind="input", says="a pipe", code="import os\nos.mkfifo('output/x')"),
    Case(
        name="output: socket",
        kind="input",
        says="a socket",
        code="import socket\nsocket.socket(socket.AF_UNIX).bind('output/x')",
    ),
    Case(
        name="output: sparse, 1 TB",
        kind="limit",
        says="larger",
        limits={"file_size": 2 << 40},
        code="import os\nf = os.open('output/x', 66)\nos.truncate(f, 1 << 40)",
    ),
    Case(
        name="output: 3,000 files",
        kind="limit",
        says="more than 1000",
        code="import os\nos.chdir('output')\nfor n in range(3000): os.close(os.open(str(n), 66))",
    ),
    Case(
        name="5,000 folders deep, output",
        kind="limit",
        says="folders deep",
        code="import os\nos.chdir('output')\nfor n in range(5000): os.mkdir('d'); os.chdir('d')",
    ),
    Case(
        name="5,000 folders deep, elsewhere, without permissions",
        state="succeeded",
        code="import os\nfor n in range(5000): os.mkdir('d'); os.chdir('d')\n"
        "os.makedirs('e/f'); os.chmod('e/f', 0); os.chmod('e', 0)",
    ),
    Case(
        name="removes its own folders",
        kind="input",
        says="output folder",
        code="import shutil\nshutil.rmtree('.', ignore_errors=True)",
    ),
    Case(
        name="puts a link in place of its output folder",
        kind="input",
        says="output folder",
        code="import os\nos.rmdir('output'); os.symlink('/etc', 'output')",
    ),
]
LARGE = [
    Case(
        name="output: 100,000 files",
        kind="limit",
        says="more than 1000",
        code="import os\nos.chdir('output')\nfor n in range(100000): os.close(os.open(str(n), 66))",
    ),
    Case(
        name="50,000 folders deep",
        state="succeeded",
        code="import os\nfor n in range(50000): os.mkdir('d'); os.chdir('d')",
    ),
]
DEVICE = Case(
    name="output: device",
    kind="input",
    says="a device",
    code="import os\nos.mknod('output/x', 0o20600, os.makedev(1, 3))",
)


def rss(pid: int) -> float:
    """MiB that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def ended(duly: Duly, job_id: str, *, within: float) -> RunView:
    """The job's run, once it has ended."""

    def look() -> RunView | None:
        run = next(iter(duly.runs(job_id=job_id, limit=1).items), None)
        return run if run is not None and run.state in ENDED else None

    return until(look, within=within, what="the end")


def below(mark: str) -> int:
    """Living processes whose working directory lies below a path, or that were started in one that is gone."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found = str((entry / "cwd").readlink()).startswith(mark)
                count += found and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                continue
    return count


def carry_out(duly: Duly, case: Case, pid: int, scratch: Path) -> Row:
    """Run the case, check its end, and that the worker lives: the next command runs in time."""
    before = rss(pid)
    task: dict[str, Any] = {"kind": "command", "argv": [sys.executable, "-S", "-c", case.code]}
    if case.limits:
        task["limits"] = case.limits
    job = duly.create(task=task, schedule="now", **({"retry": {"max_attempts": 1}} | case.job))
    run = ended(duly, job.id, within=40)
    error = run.error
    assert run.state == case.state, (case.name, run.state, error)
    assert (error.kind if error else "") == case.kind, (case.name, error)
    assert case.says in (error.message if error else ""), (case.name, error)
    assert not run.outputs, case.name
    text = duly.log(run.id) if case.log or case.name.startswith("1 GB") else ""
    assert case.log in text, (case.name, text[:200])
    if case.name.startswith("1 GB"):
        assert len(text) < 10 * MIB + 200, "it is cut"
        assert "was cut" in text[-200:]
    left = below(str(scratch / "commands"))
    assert not left, (case.name, "processes are left")
    following = ended(duly, duly.create(task={"kind": "command", "argv": ["true"]}, schedule="now").id, within=20)
    assert following.state == "succeeded", (case.name, following)
    took = 0.0
    if run.started_at and run.finished_at:
        took = (parse_instant(run.finished_at) - parse_instant(run.started_at)) / SECOND
    late = following.lateness_ms or 0.0
    assert late < 5_000, (case.name, "the next command waited")
    end = run.state + (f", {error.kind}: {error.message}" if error else "")
    return Row(case.name, end, took, rss(pid) - before, left, following.state, late)
