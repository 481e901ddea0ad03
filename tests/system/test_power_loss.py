"""The power goes while the store writes: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

from pathlib import Path

from system.power import checked_magic, cuts, frames, record, reopened


async def test_a_few_hundred_cuts(tmp_path: Path) -> None:
    """Each cut of the log, the checkpoint and the log's new start leaves exactly the last whole commit.

    All of them are `tests/soak/power_loss.py`.
    """
    recording = await record(tmp_path, 3)
    assert checked_magic(recording)
    assert frames(recording) > 100
    count = 0
    for cut in cuts(recording, every=3):
        await reopened(tmp_path / "cut", cut, with_store=count % 10 == 0)
        count += 1
    assert count > 300
