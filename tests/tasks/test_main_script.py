"""Functions that live in a program's own script, in threads and in processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from duly.tasks.registry import FunctionRegistry
from workers.bench import call, working

functions = FunctionRegistry()

def here(a):
    return [a, __name__]

functions.add(here, "__main__:here")

async def main():
    async with working(Path({folder!r}), functions=functions, functions_in={where!r}) as bench:
        event = await bench.succeeded(await bench.give(call("__main__:here", 3)))
        print(bytes(event.result).decode())

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(("where", "name"), [("threads", "__main__"), ("processes", "__duly_main__")])
def test_a_function_of_the_script_itself_runs(tmp_path: Path, where: str, name: str) -> None:
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parents[1])
    script.write_text(SCRIPT.format(tests=tests, folder=str(tmp_path), where=where))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'[3,"{name}"]\n'
