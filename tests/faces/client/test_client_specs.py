"""Names of functions, as workers find them, and the loop beside the program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duly.core.errors import InvalidInput
from duly.faces.loop_thread import LoopThread
from duly.faces.specs import function_mode, function_name, microseconds

SCRIPT = """
import json, sys
from duly.faces.specs import function_name

def nightly(): ...

class Reports:
    @staticmethod
    def weekly(): ...

print(json.dumps([function_name(nightly), function_name(Reports.weekly)]))
"""


def test_a_function_goes_by_its_module() -> None:
    """Module and qualified name; a name is taken as it is."""
    assert function_name(json.dumps) == "json:dumps"
    assert function_name("any:thing") == "any:thing"
    with pytest.raises(InvalidInput, match="top of a module"):
        function_name(lambda: None)


@pytest.mark.parametrize("how", ["script", "module"])
def test_a_script_goes_by_its_file(tmp_path: Path, how: str) -> None:
    """What is `__main__` here has the name by which a worker imports it, however it was started."""
    (tmp_path / "reports.py").write_text(SCRIPT)
    command = ["reports.py"] if how == "script" else ["-m", "reports"]
    out = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True).stdout
    assert json.loads(out) == ["reports:nightly", "reports:Reports.weekly"]


def test_modes() -> None:
    """Coroutine functions have a lane of their own; of a name nothing is known."""
    assert function_mode(asyncio.to_thread) == "async"
    assert function_mode(json.dumps) == "sync"
    assert function_mode("json:dumps") is None


def test_timeouts_may_be_seconds_or_durations() -> None:
    """0.5 and "500ms" are the same."""
    assert microseconds(0.5) == microseconds("500ms") == 500_000


def test_iterating_from_ordinary_code() -> None:
    """Items come one by one, errors come through, and stopping early closes the iterator there."""
    closed: list[str] = []

    async def count(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
            raise KeyError(name)
        finally:
            closed.append(name)

    thread = LoopThread()
    items = thread.each(count("early"))
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]  # a generator
    with pytest.raises(KeyError):
        list(thread.each(count("whole")))
    assert closed == ["early", "whole"]
    thread.close()
    thread.close()


def test_closing_cancels_what_still_runs() -> None:
    """Nothing is left behind, and the thread can be used again."""
    thread = LoopThread()
    ended: list[str] = []

    async def forever(started: asyncio.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def start() -> None:
        started = asyncio.Event()
        tasks.append(asyncio.ensure_future(forever(started)))
        await started.wait()

    tasks: list[asyncio.Future[None]] = []
    thread.wait(start())
    thread.close()
    assert ended == ["cancelled"]

    async def again() -> int:
        return 1

    assert thread.wait(again()) == 1
    thread.close()
