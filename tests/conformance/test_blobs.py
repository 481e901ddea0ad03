"""The Blobs port, clause by clause, and what the directory under it must look like."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conformance.samples import T0
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.core.errors import BlobCorrupt, InvalidInput, NotFound, TooLarge
from duly.core.instants import DAY, HOUR
from duly.testing import ManualClock

LIMIT = 64 * 1024 * 1024
BIG = bytes(range(256)) * (5 * 4096)  # 5 MiB: several chunks


def sha(data: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


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


async def stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """Bytes in pieces."""
    for i in range(0, len(data), size):
        yield data[i : i + size]


async def whole(blobs: ObstoreBlobs, digest: str, **part: Any) -> bytes:
    """A blob, or a part of it, in one piece."""
    return b"".join([chunk async for chunk in blobs.get(digest, **part)])


# -- put ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"hello", BIG], ids=["empty", "one", "small", "big"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_put_answers_digest_and_size(blobs: ObstoreBlobs, data: bytes, streamed: bool) -> None:
    """What went in comes out."""
    assert await blobs.put(stream(data) if streamed else data, limit=LIMIT) == (sha(data), len(data))
    assert await whole(blobs, sha(data)) == data
    assert await blobs.size(sha(data)) == len(data)


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


async def test_put_past_the_limit_is_too_large_and_keeps_nothing(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """The limit itself is allowed."""
    assert (await blobs.put(b"12345", limit=5))[1] == 5
    with pytest.raises(TooLarge):
        await blobs.put(b"123456", limit=5)
    with pytest.raises(TooLarge):
        await blobs.put(stream(BIG), limit=len(BIG) - 1)
    assert len(files(tmp_path)) == 1


async def test_put_stops_reading_at_the_limit(blobs: ObstoreBlobs) -> None:
    """An endless upload ends."""
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 100_000

    with pytest.raises(TooLarge):
        await blobs.put(endless(), limit=1_000_000)
    assert given <= 12


async def test_put_of_unexpected_content_is_invalid_and_keeps_nothing(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """The right content is taken."""
    with pytest.raises(InvalidInput):
        await blobs.put(b"data", limit=LIMIT, expected=sha(b"other"))
    assert files(tmp_path) == []
    assert await blobs.put(b"data", limit=LIMIT, expected=sha(b"data")) == (sha(b"data"), 4)


async def test_put_that_fails_keeps_nothing(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """The client went away in the middle."""

    async def broken() -> AsyncIterator[bytes]:
        yield BIG
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        await blobs.put(broken(), limit=LIMIT)
    assert files(tmp_path) == []


async def test_put_of_the_same_content_twice_is_one_blob(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """Also at the same time."""
    await asyncio.gather(*(blobs.put(stream(BIG), limit=LIMIT) for _ in range(4)))
    assert await blobs.put(BIG, limit=LIMIT) == (sha(BIG), len(BIG))
    assert len(files(tmp_path)) == 1


async def test_put_again_mends_a_blob_that_was_cut_short(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """As a disk check may leave it."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    files(tmp_path)[0].write_bytes(b"da")
    await blobs.put(b"data", limit=LIMIT)
    assert await whole(blobs, digest) == b"data"


# -- get ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (0, 4, b"0123"),
        (3, 7, b"3456"),
        (0, 10, b"0123456789"),
        (5, 99, b"56789"),
        (10, None, b""),
        (99, None, b""),
        (5, 5, b""),
        (7, 3, b""),
    ],
)
async def test_get_streams_a_range(blobs: ObstoreBlobs, start: int, end: int | None, expected: bytes) -> None:
    """From start up to, not with, end."""
    digest, _ = await blobs.put(b"0123456789", limit=LIMIT)
    assert await whole(blobs, digest, start=start, end=end) == expected


async def test_get_of_an_unknown_blob_is_not_found(blobs: ObstoreBlobs) -> None:
    """At the first chunk."""
    with pytest.raises(NotFound):
        await whole(blobs, sha(b"nothing"))
    assert await blobs.size(sha(b"nothing")) is None


@pytest.mark.parametrize("data", [b"small", BIG], ids=["small", "big"])
async def test_get_of_corrupt_bytes_fails_before_the_last_chunk(
    blobs: ObstoreBlobs, tmp_path: Path, data: bytes
) -> None:
    """Nobody ends up with a whole that is wrong."""
    digest, _ = await blobs.put(data, limit=LIMIT)
    [path] = files(tmp_path)
    path.write_bytes(data[:-1] + b"\x00")
    got: list[bytes] = []

    async def read() -> None:
        async for chunk in blobs.get(digest):
            got.append(chunk)  # noqa: PERF401 - what came before the error is the point

    with pytest.raises(BlobCorrupt):
        await read()
    assert len(b"".join(got)) < len(data)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "sha256:",
        "sha256:../../etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "md5:" + "a" * 32,
    ],
)
async def test_a_digest_is_checked_before_it_is_a_path(blobs: ObstoreBlobs, bad: str, tmp_path: Path) -> None:
    """By every verb."""
    with pytest.raises(InvalidInput):
        await whole(blobs, bad)
    with pytest.raises(InvalidInput):
        await blobs.size(bad)
    with pytest.raises(InvalidInput):
        await blobs.delete([bad], unused_for=0)
    with pytest.raises(InvalidInput):
        await blobs.fetch(bad, str(tmp_path / "x"))
    with pytest.raises(InvalidInput):
        await blobs.put(b"", limit=1, expected=bad)


# -- delete -------------------------------------------------------------------------------------------------


async def test_delete_removes_what_was_long_unused(blobs: ObstoreBlobs, clock: ManualClock, tmp_path: Path) -> None:
    """And tells how many; unknown ones are none."""
    old, _ = await blobs.put(b"old", limit=LIMIT)
    await clock.advance(HOUR)
    new, _ = await blobs.put(b"new", limit=LIMIT)
    assert await blobs.delete([old, new, sha(b"unknown")], unused_for=HOUR) == 1
    assert await blobs.size(old) is None
    assert await blobs.size(new) == 3
    assert len(files(tmp_path)) == 1


async def test_put_again_renews_the_age(blobs: ObstoreBlobs, clock: ManualClock) -> None:
    """A blob that someone just relied on stays."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR)
    await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR - 1)
    assert await blobs.delete([digest], unused_for=HOUR) == 0
    await clock.advance(1)
    assert await blobs.delete([digest], unused_for=HOUR) == 1


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


# -- fetch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executable", [False, True])
async def test_fetch_puts_a_copy_at_a_path(blobs: ObstoreBlobs, tmp_path: Path, executable: bool) -> None:
    """In place of what was there, and executable if asked."""
    digest, _ = await blobs.put(BIG, limit=LIMIT)
    target = tmp_path / "work" / "input" / "file"
    for _ in range(2):
        await blobs.fetch(digest, str(target), executable=executable)
        assert target.read_bytes() == BIG
        assert os.access(target, os.X_OK) is executable
    assert [path.name for path in target.parent.iterdir()] == ["file"]


async def test_writing_to_a_fetched_file_leaves_the_blob_alone(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """It is a copy."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await blobs.fetch(digest, str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"evil")
    assert await whole(blobs, digest) == b"data"


async def test_fetch_of_corrupt_bytes_leaves_nothing(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """Checked while it is copied."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    files(tmp_path)[0].write_bytes(b"dada")
    with pytest.raises(BlobCorrupt):
        await blobs.fetch(digest, str(tmp_path / "work" / "file"))
    assert list((tmp_path / "work").iterdir()) == []


async def test_fetch_of_an_unknown_blob_is_not_found(blobs: ObstoreBlobs, tmp_path: Path) -> None:
    """And leaves nothing."""
    with pytest.raises(NotFound):
        await blobs.fetch(sha(b"unknown"), str(tmp_path / "work" / "file"))
    assert list((tmp_path / "work").iterdir()) == []
