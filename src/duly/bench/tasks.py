"""What the benchmark runs: nothing, quickly, and a note of when it began."""

from __future__ import annotations


def noop() -> None:
    """Nothing, in a process."""


async def anoop() -> None:
    """Nothing, as a coroutine."""
