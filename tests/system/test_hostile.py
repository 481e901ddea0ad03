"""Commands that do their worst end as what they did, leave nothing behind, and the next one runs in time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from duly import Duly
from system.hostile import CASES, DEVICE, Case, carry_out, rss
from system.served import Served, until

MOST_GROWTH = 96  # MiB of the server, over all cases: 1 GB of output passes through none of them


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Duly, Path]]:
    """One server for all of them, so that what one has broken shows in the next."""
    folder = tmp_path_factory.mktemp("hostile")
    served = Served(folder / "data", "--slots", "2", env={"DULY_GRACE": "500ms"})
    with served.start() as duly:
        [scratch] = (folder / "data" / "scratch").iterdir()
        yield served, duly, scratch
    status, stderr = served.stop()
    assert status == 0, stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(server: tuple[Served, Duly, Path], case: Case) -> None:
    """It ends as the right error; nothing of it is left; the next command succeeds."""
    served, duly, scratch = server
    before = rss(served.pid)
    carry_out(duly, case, served.pid, scratch)
    assert rss(served.pid) - before < MOST_GROWTH
    until(lambda: not list((scratch / "commands").iterdir()), what="the removal of its folder")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a device")
def test_a_device_among_the_outputs(server: tuple[Served, Duly, Path]) -> None:
    """It is not read."""
    served, duly, scratch = server
    carry_out(duly, DEVICE, served.pid, scratch)
