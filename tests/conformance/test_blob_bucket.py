"""A bucket under a blob store, and the cache of a worker before it: what the clauses of the port do not say."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import obstore
import pytest

from conformance.blob_harness import BIG, LIMIT, Kept, in_bucket, sha, whole
from duly.adapters.cached_blobs import CachedBlobs
from duly.adapters.s3_blobs import S3Blobs, S3Options
from duly.core.errors import NotFound, Unavailable
from duly.core.instants import HOUR
from duly.ports import Blobs
from duly.testing import ManualClock


@pytest.fixture
def bucket(s3_address: str, clock: ManualClock) -> tuple[Blobs, Kept]:
    """An empty one."""
    return in_bucket(s3_address, f"blobs-{uuid.uuid4().hex}", clock)


async def test_a_blob_that_is_put_again_while_it_is_deleted_stays(
    bucket: tuple[Blobs, Kept], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put falls between the look at the age and the removal."""
    blobs, _ = bucket
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await clock.advance(HOUR)
    real = obstore.delete_async

    async def delete(store: Any, paths: Sequence[str]) -> None:
        monkeypatch.setattr(obstore, "delete_async", real)
        await blobs.put(b"data", limit=LIMIT)
        await real(store, paths)

    monkeypatch.setattr(obstore, "delete_async", delete)
    await blobs.delete([digest], unused_for=HOUR)
    assert await whole(blobs, digest) == b"data"


async def test_a_copy_that_is_replaced_before_it_is_read_is_found_anew(
    bucket: tuple[Blobs, Kept], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers do not see that a blob was put again."""
    blobs, kept = bucket
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    await clock.advance(1)
    real = obstore.get_async

    async def get(*args: Any, **how: Any) -> Any:
        monkeypatch.setattr(obstore, "get_async", real)
        await blobs.put(b"data", limit=LIMIT)
        return await real(*args, **how)

    monkeypatch.setattr(obstore, "get_async", get)
    assert await whole(blobs, digest) == b"data"
    assert len(kept()) == 1


async def test_a_bucket_that_is_not_there_is_unavailable(s3_address: str, clock: ManualClock) -> None:
    """In one line, without the secret key."""
    options = S3Options(bucket="no-such", endpoint=s3_address, access_key="key", secret_key="hidden")
    with pytest.raises(Unavailable, match="NoSuchBucket") as caught:
        await S3Blobs(options, clock=clock).put(b"data", limit=LIMIT)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


# -- the cache ----------------------------------------------------------------------------------------------


async def test_the_cache_asks_the_store_once(bucket: tuple[Blobs, Kept], tmp_path: Path) -> None:
    """However many fetch the same at the same time, or later."""
    blobs, _ = bucket
    digest, _ = await blobs.put(BIG, limit=LIMIT)
    cache = CachedBlobs(blobs, tmp_path / "cache", limit=2 * len(BIG))
    await asyncio.gather(*(cache.fetch(digest, str(tmp_path / f"a{number}")) for number in range(4)))
    assert await blobs.delete([digest], unused_for=0) == 1
    await cache.fetch(digest, str(tmp_path / "later"))
    assert (tmp_path / "later").read_bytes() == BIG
    assert cache.hits >= 1


async def test_the_cache_is_bounded(bucket: tuple[Blobs, Kept], tmp_path: Path) -> None:
    """What was longest unused goes; what is larger than all of it is not kept."""
    blobs, _ = bucket
    digests = [(await blobs.put(bytes([number]) * 1_000, limit=LIMIT))[0] for number in range(4)]
    large, _ = await blobs.put(b"x" * 4_000, limit=LIMIT)
    folder = tmp_path / "cache"
    cache = CachedBlobs(blobs, folder, limit=3_000)
    for digest in (*digests[:3], digests[0], digests[3], large):
        await cache.fetch(digest, str(tmp_path / "out"))
    assert {path.name for path in folder.iterdir()} == {digests[n].partition(":")[2] for n in (0, 2, 3)}
    assert (tmp_path / "out").read_bytes() == b"x" * 4_000


async def test_a_damaged_file_of_the_cache_is_fetched_again(bucket: tuple[Blobs, Kept], tmp_path: Path) -> None:
    """Nobody gets it."""
    blobs, _ = bucket
    digest, _ = await blobs.put(b"data", limit=LIMIT)
    cache = CachedBlobs(blobs, tmp_path / "cache", limit=3_000)
    await cache.fetch(digest, str(tmp_path / "out"))
    [path] = (tmp_path / "cache").iterdir()
    path.write_bytes(b"dada")
    await cache.fetch(digest, str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"data"


async def test_the_cache_does_not_make_up_what_is_not_there(bucket: tuple[Blobs, Kept], tmp_path: Path) -> None:
    """And goes on after a failed fetch."""
    blobs, _ = bucket
    cache = CachedBlobs(blobs, tmp_path / "cache", limit=3_000)
    for _ in range(2):
        with pytest.raises(NotFound):
            await cache.fetch(sha(b"nothing"), str(tmp_path / "out"))
    assert list((tmp_path / "cache").iterdir()) == []
