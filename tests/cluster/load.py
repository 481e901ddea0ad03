"""Load on a cluster through duly's own client transport, so that its failover is what is tried."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - seeded: chance is what this test is about
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from duly.core.errors import OutcomeUnknown, Overloaded, Unavailable
from duly.faces.exchange import Exchange
from system.rounds import Acknowledged, Load


class Answer:
    """What a call was answered with."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status_code = status
        self.text = content.decode()

    def json(self) -> Any:
        """Its content."""
        return msgspec.json.decode(self.text)


class Caller:
    """The few calls of `httpx2.Client` that the load makes, by an Exchange over several servicers."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._runner = asyncio.Runner()
        self._exchange = Exchange(list(urls))

    def close(self) -> None:
        """Let go of the connections."""
        self._runner.run(self._exchange.close())
        self._runner.close()

    def _call(self, method: str, path: str, **how: Any) -> Answer:
        return Answer(*self._runner.run(self._exchange.send(method, path, **how)))

    def post(self, path: str, json: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Create with a key, or cancel: both may be repeated."""
        return self._call("POST", path, body=None if json is None else msgspec.json.encode(json), headers=headers)

    def get(self, path: str) -> Answer:
        """Read."""
        return self._call("GET", path)

    def patch(self, path: str, json: Any) -> Answer:
        """Change."""
        return self._call(
            "PATCH", path, body=msgspec.json.encode(json), headers={"Content-Type": "application/merge-patch+json"}
        )

    def delete(self, path: str) -> Answer:
        """Delete."""
        return self._call("DELETE", path, gone=True)


class ClusterLoad(Load):
    """One client that goes on while a shard does not answer, and comes back to what was not answered."""

    def __init__(self, client: int, marks: Path, done: Acknowledged) -> None:
        super().__init__(random.Random(client), marks, done)
        self.number = client * 1_000_000  # its jobs have keys and names of their own
        self.failed: list[str] = []  # calls that the client gave up
        self.calls = 0
        self._aside: list[tuple[str, dict[str, Any]]] = []

    def one(self, http: Any) -> None:
        if self.open is None and self._aside and self.dice.random() < 0.2:
            self.open = self._aside.pop(0)
        self.calls += 1
        try:
            super().one(http)
        except (Unavailable, OutcomeUnknown, Overloaded) as problem:
            self.failed.append(str(problem))
            if self.open is not None:
                self._aside.append(self.open)
                self.open = None

    def go(self, urls: Sequence[str], enough: threading.Event) -> None:
        """Write until it is enough, and then until everything that was begun has been answered."""
        http = Caller(urls)
        try:
            while not enough.is_set():
                self.one(http)
                enough.wait(0.02)
            while self._aside or self.open is not None:
                self.open = self.open or self._aside.pop(0)
                self.one(http)
                enough.wait(0.02)
        finally:
            http.close()
