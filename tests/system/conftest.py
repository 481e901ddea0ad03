"""Real `duly up` processes, ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from system.served import Served


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes a server over a directory of the test; all of them are killed at its end."""
    made: list[Served] = []

    def make(*options: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Served:
        served = Served(tmp_path / "data", *options, cwd=cwd, env=env)
        made.append(served)
        return served

    yield make
    for served in made:
        served.kill()
