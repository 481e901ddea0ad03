"""Which attempts a worker has begun from a list: their Assign may come yet, and must not begin them once more.

It comes out of an outage of the broker, or from a scheduler that was frozen between its commit and its message: nothing
bounds how late. What is remembered is bounded, so that of what was dropped the spans of time are kept in which it was
dispatched, by the shard's clock; of those nothing is begun from a message any more.
"""

from __future__ import annotations

from typing import Final

from duly.core.messages import Assign
from duly.core.model import Run, RunKey

REMEMBERED: Final = 10_000  # attempts of a shard
SPANS: Final = 8  # a span ends where the shard's clock was set back; past so many the two oldest become one


class BegunFromLists:
    """One shard's."""

    def __init__(self) -> None:
        self._dispatched: dict[tuple[RunKey, int], int] = {}  # oldest first
        self._forgotten: list[tuple[int, int]] = []  # first and last instant of each span

    def add(self, run: Run) -> None:
        """Its current attempt was begun from a list."""
        self._dispatched[run.key, run.attempt] = _dispatched_at(run)
        if len(self._dispatched) > REMEMBERED:
            self._forget(self._dispatched.pop(next(iter(self._dispatched))))

    def clear(self) -> None:
        """The worker has a new id: what was meant for the former one is not begun anyway."""
        self._dispatched.clear()
        self._forgotten.clear()

    def __bool__(self) -> bool:
        """There have been any: then some are remembered."""
        return bool(self._dispatched)

    def has(self, run: Run) -> bool:
        """Its current attempt is remembered as one of these."""
        return (run.key, run.attempt) in self._dispatched

    def may_have(self, message: Assign, run: Run) -> bool:
        """It may be one that is forgotten. The lists themselves hold nothing that has ended, so they are believed."""
        if not self._forgotten or not message.fence:
            return False
        at = _dispatched_at(run)
        return any(first <= at <= last for first, last in self._forgotten)

    def _forget(self, at: int) -> None:
        spans = self._forgotten
        if spans and at >= spans[-1][0]:
            spans[-1] = (spans[-1][0], max(at, spans[-1][1]))
            return
        spans.append((at, at))
        if len(spans) > SPANS:
            (one, end), (other, last) = spans[:2]
            spans[:2] = [(min(one, other), max(end, last))]


def _dispatched_at(run: Run) -> int:
    """By the shard's clock, in µs; the store and the message have the same."""
    return run.dispatched_at or 0
