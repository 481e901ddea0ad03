"""The Blobs port, clause by clause: over a directory, over an S3 server, and behind a worker's cache."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conformance.blob_harness import BIG, LIMIT, Kept, sha, stream, whole
from duly.core.errors import BlobCorrupt, InvalidInput, NotFound, TooLarge
from duly.core.instants import HOUR
from duly.ports import Blobs
from duly.testing import ManualClock

# -- put ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"hello", BIG], ids=["empty", "one", "small", "big"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_put_answers_digest_and_size(blobs: Blobs, data: bytes, streamed: bool) -> None:
    """What went in comes out."""
    assert await blobs.put(stream(data) if streamed else data, limit=LIMIT) == (sha(data), len(data))
    assert await whole(blobs, sha(data)) == data
    assert await blobs.size(sha(data)) == len(data)


async def test_put_past_the_limit_is_too_large_and_keeps_nothing(blobs: Blobs, kept: Kept) -> None:
    """The limit itself is allowed."""
    assert (await blobs.put(b"12345", limit=5))[1] == 5
    with pytest.raises(TooLarge):
        await blobs.put(b"123456", limit=5)
    with pytest.raises(TooLarge):
        await blobs.put(stream(BIG), limit=len(BIG) - 1)
    assert len(kept()) == 1


async def test_put_stops_reading_at_the_limit(blobs: Blobs) -> None:
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


async def test_put_of_unexpected_content_is_invalid_and_keeps_nothing(blobs: Blobs, kept: Kept) -> None:
    """The right content is taken."""
    with pytest.raises(InvalidInput):
        await blobs.put(b"data", limit=LIMIT, expected=sha(b"other"))
    assert kept() == []
    assert await blobs.put(b"data", limit=LIMIT, expected=sha(b"data")) == (sha(b"data"), 4)


async def test_put_that_fails_keeps_nothing(blobs: Blobs, kept: Kept) -> None:
    """The client went away in the middle."""

    async def broken() -> AsyncIterator[bytes]:
        yield BIG
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        await blobs.put(broken(), limit=LIMIT)
    assert kept() == []


async def test_put_of_the_same_content_twice_is_one_blob(blobs: Blobs, kept: Kept) -> None:
    """Also at the same time."""
    await asyncio.gather(*(blobs.put(stream(BIG), limit=LIMIT) for _ in range(4)))
    assert await blobs.put(BIG, limit=LIMIT) == (sha(BIG), len(BIG))
    assert len(kept()) == 1


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
async def test_get_streams_a_range(blobs: Blobs, start: int, end: int | None, expected: bytes) -> None:
    """From start up to, not with, end."""
    digest, _ = await blobs.put(b"0123456789", limit=LIMIT)
    assert await whole(blobs, digest, start=start, end=end) == expected


async def test_get_of_an_unknown_blob_is_not_found(blobs: Blobs) -> None:
    """At the first chunk."""
    with pytest.raises(NotFound):
        await whole(blobs, sha(b"nothing"))
    assert await blobs.size(sha(b"nothing")) is None


@pytest.mark.parametrize("data", [b"small", BIG], ids=["small", "big"])
async def test_get_of_corrupt_bytes_fails_before_the_last_chunk(blobs: Blobs, data: bytes, kept: Kept) -> None:
    """Nobody ends up with a whole that is wrong."""
    digest, _ = await blobs.put(data, limit=LIMIT)
    kept.damage(data[:-1] + b"\x00")
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
async def test_a_digest_is_checked_before_it_is_a_path(blobs: Blobs, bad: str, tmp_path: Path) -> None:
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


async def test_delete_removes_what_was_long_unused(blobs: Blobs, clock: ManualClock, kept: Kept) -> None:
    """And tells how many; unknown ones are none."""
    old, _ = await blobs.put(b"old", limit=LIMIT)
    await clock.advance(HOUR)
    new, _ = await blobs.put(b"new", limit=LIMIT)
    assert await blobs.delete([old, new, sha(b"unknown")], unused_for=HOUR) == 1
    assert await blobs.size(old) is None
    assert await blobs.size(new) == 3
    assert len(kept()) == 1


async def test_put_again_renews_the_age(blobs: Blobs, clock: ManualClock) -> None:
    """A blob that someone just relied on stays."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR)
    await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR - 1)
    assert await blobs.delete([digest], unused_for=HOUR) == 0
    await clock.advance(1)
    assert await blobs.delete([digest], unused_for=HOUR) == 1


# -- fetch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executable", [False, True])
async def test_fetch_puts_a_copy_at_a_path(blobs: Blobs, tmp_path: Path, executable: bool) -> None:
    """In place of what was there, and executable if asked."""
    digest, _ = await blobs.put(BIG, limit=LIMIT)
    target = tmp_path / "work" / "input" / "file"
    for _ in range(2):
        await blobs.fetch(digest, str(target), executable=executable)
        assert target.read_bytes() == BIG
        assert os.access(target, os.X_OK) is executable
    assert [path.name for path in target.parent.iterdir()] == ["file"]


async def test_writing_to_a_fetched_file_leaves_the_blob_alone(blobs: Blobs, tmp_path: Path) -> None:
    """It is a copy."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await blobs.fetch(digest, str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"evil")
    assert await whole(blobs, digest) == b"data"


async def test_fetch_of_corrupt_bytes_leaves_nothing(blobs: Blobs, tmp_path: Path, kept: Kept) -> None:
    """Checked while it is copied."""
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    kept.damage(b"dada")
    with pytest.raises(BlobCorrupt):
        await blobs.fetch(digest, str(tmp_path / "work" / "file"))
    assert list((tmp_path / "work").glob("*")) == []


async def test_fetch_of_an_unknown_blob_is_not_found(blobs: Blobs, tmp_path: Path) -> None:
    """And leaves nothing."""
    with pytest.raises(NotFound):
        await blobs.fetch(sha(b"unknown"), str(tmp_path / "work" / "file"))
    assert list((tmp_path / "work").glob("*")) == []


# -- page ---------------------------------------------------------------------------------------------------


async def test_page_goes_through_all_that_is_old_in_order(blobs: Blobs, clock: ManualClock) -> None:
    """Page by page; what was put again lately is left out."""
    digests = sorted([(await blobs.put(bytes([number]), limit=LIMIT))[0] for number in range(7)])
    await clock.advance(HOUR)
    young, _ = await blobs.put(bytes([3]), limit=LIMIT)
    seen: list[str] = []
    while page := await blobs.page(seen[-1] if seen else None, 2, unused_for=HOUR):
        assert len(page) <= 2
        seen += page
    assert seen == [digest for digest in digests if digest != young]
