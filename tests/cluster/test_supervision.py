"""The supervision of processes: restarts, ends, and what becomes of them when the supervisor dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from duly.adapters.system_clock import SystemClock
from duly.boot.serving import listen
from duly.cluster.supervision import LOG_BYTES, Program, Supervised, turn_over
from duly.core.errors import Unavailable
from duly.core.instants import MILLISECOND, SECOND
from system.served import until

CLOCK = SystemClock()
SAYS = 'import sys, signal; print(\'{"who": "me"}\', flush=True); '
Make = Callable[..., Supervised]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes supervised Python programs; all are stopped at the end."""
    made: list[Supervised] = []

    def new(code: str, **how: Any) -> Supervised:
        program = Program(
            argv=(sys.executable, "-c", code),
            log=tmp_path / "log",
            env={"PATH": os.environ["PATH"]},
            **how,
        )
        made.append(Supervised("it", lambda: program, clock=CLOCK))
        return made[-1]

    yield new
    for supervised in made:
        await supervised.stop()


async def reaches(look: Callable[[], object]) -> None:
    """Wait until it holds; the test's time limit bounds it."""
    while not look():
        await CLOCK.sleep(5 * MILLISECOND)


async def test_one_that_ends_is_started_again(make: Make) -> None:
    """With another pid, and what it says when it is ready is told anew."""
    it = make(SAYS + "signal.pause()")
    it.start()
    assert await it.ready(10 * SECOND) == {"who": "me"}
    first = it.pid
    await it.kill()
    assert (it.pid, it.state, it.restarts) == (None, "pausing", 1), "the killed one is not told as running"
    await reaches(lambda: it.pid not in (None, first))
    await it.ready(10 * SECOND)
    assert (it.restarts, it.state) == (1, "ready")


async def test_the_pause_before_a_restart_grows(make: Make, tmp_path: Path) -> None:
    """One that ends at once is not started over and over; who waits for it is told why it does not start."""
    it = make("import sys; sys.exit('no such thing')")
    began = CLOCK.monotonic()
    it.start()
    with pytest.raises(Unavailable, match="no such thing"):
        await it.ready(30 * SECOND)
    assert it.restarts >= 3
    assert CLOCK.monotonic() - began >= (100 + 200) * MILLISECOND


async def test_one_that_cannot_be_started_says_why(make: Make) -> None:
    """As one that ends at once."""
    it = make("pass", folder=Path("/no/such/folder"))
    it.start()
    with pytest.raises(Unavailable, match="/no/such/folder"):
        await it.ready(30 * SECOND)


async def test_a_stopped_one_stays_down_until_it_is_started(make: Make) -> None:
    """Stopping is asking; the same one can be started again."""
    it = make(SAYS + "signal.pause()")
    it.start()
    await it.ready(10 * SECOND)
    await it.stop()
    assert (it.state, it.pid, it.restarts) == ("stopped", None, 0)
    it.start()
    await it.ready(10 * SECOND)
    assert it.state == "ready"


async def test_one_that_does_not_end_is_killed_after_its_grace(make: Make) -> None:
    """A stop always returns."""
    it = make("import signal; signal.signal(15, signal.SIG_IGN); " + SAYS + "\nwhile True: signal.pause()", grace=0)
    it.start()
    await it.ready(10 * SECOND)
    pid = it.pid
    await it.stop()
    assert pid is not None
    assert not _alive(pid)


async def test_one_that_is_frozen_can_be_stopped(make: Make) -> None:
    """It is let go on, so that it can end."""
    it = make(SAYS + "signal.pause()")
    it.start()
    await it.ready(10 * SECOND)
    assert it.pid is not None
    os.kill(it.pid, signal.SIGSTOP)
    await it.stop()
    assert it.state == "stopped"


async def test_a_pause_ends_when_a_stop_is_asked_for(make: Make) -> None:
    """Nothing is started after a stop."""
    it = make("raise SystemExit(1)")
    it.start()
    await reaches(lambda: it.restarts >= 2 and it.state == "pausing")
    await it.stop()
    assert (it.state, it.pid) == ("stopped", None)


async def test_a_listening_socket_is_handed_over(make: Make) -> None:
    """As descriptor 3, with the words that systemd has for it."""
    code = (
        "import json, os, signal, socket; given = socket.socket(fileno=3); "
        "told = {'port': given.getsockname()[1], 'mine': os.environ['LISTEN_PID'] == str(os.getpid())}; "
        "print(json.dumps(told), flush=True); signal.pause()"
    )
    with listen("127.0.0.1", 0) as front:
        it = make(code, listen=front.fileno())
        it.start()
        assert await it.ready(10 * SECOND) == {"port": front.getsockname()[1], "mine": True}


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    """The kernel ends what is tied to it."""
    code = f"""
import asyncio, sys
from pathlib import Path
from duly.adapters.system_clock import SystemClock
from duly.cluster.supervision import Program, Supervised
async def main():
    child = {SAYS + "signal.pause()"!r}
    program = Program(argv=(sys.executable, "-c", child), log=Path({str(tmp_path / "log")!r}))
    it = Supervised("it", lambda: program, clock=SystemClock())
    it.start()
    await it.ready(10_000_000)
    print(it.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
    until(lambda: not _alive(pid), what="its end")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_log_that_has_grown_is_turned_over(tmp_path: Path) -> None:
    """Whoever writes to it goes on with an empty one; the former is kept once."""
    path = tmp_path / "it.log"
    with path.open("ab") as writing:
        writing.write(b"x" * (LOG_BYTES + 1))
        writing.flush()
        turn_over(path)
        writing.write(b"after")
    assert path.read_bytes() == b"after"
    assert (tmp_path / "it.log.1").stat().st_size == LOG_BYTES + 1
