"""What the directory under a blob store must look like, beside the clauses of the port."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformance.blob_harness import LIMIT, whole
from conformance.samples import T0
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.core.instants import DAY, HOUR
from duly.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """It stands at T0."""
    return ManualClock(T0)


@pytest.fixture
def blobs(tmp_path: Path, clock: ManualClock) -> ObstoreBlobs:
    """An empty store in a directory that is not there yet."""
    return ObstoreBlobs(tmp_path / "made" / "blobs", clock=clock)


def files(tmp_path: Path) -> list[Path]:
    """All files under the store."""
    return [path for path in (tmp_path / "made").rglob("*") if path.is_file()]


async def test_put_is_durable_before_it_answers(
    blobs: ObstoreBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and every directory that its name hangs from are synced, the file before it has its name."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    root = tmp_path / "made" / "blobs"
    assert synced[0].startswith(str(root / "tmp"))
    assert synced[1:] == [str(root / "sha256" / digest[7:9]), str(root / "sha256"), str(root)]


async def test_put_again_mends_a_blob_that_was_cut_short(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """As a disk check may leave it."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    files(tmp_path)[0].write_bytes(b"da")
    await blobs.put(b"data", limit=LIMIT)
    assert await whole(blobs, digest) == b"data"


async def test_a_blob_that_is_put_again_while_it_is_deleted_stays(
    blobs: ObstoreBlobs, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put falls between the look at the age and the removal."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", real)
        now = clock.wall() * 1_000
        os.utime(path, ns=(now, now))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert await blobs.delete([digest], unused_for=HOUR) == 0
    assert await whole(blobs, digest) == b"data"


async def test_delete_sweeps_uploads_whose_process_died(
    blobs: ObstoreBlobs, clock: ManualClock, tmp_path: Path
) -> None:
    """After a day."""
    await blobs.put(b"data", limit=LIMIT)
    left = tmp_path / "made" / "blobs" / "tmp" / "0123"
    left.write_bytes(b"half")
    os.utime(left, ns=(T0 * 1_000, T0 * 1_000))
    await blobs.delete([], unused_for=0)
    assert left.exists()
    await clock.advance(DAY)
    await blobs.delete([], unused_for=0)
    assert not left.exists()
