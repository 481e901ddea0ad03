"""A worker's blobs: a bounded directory of what it has fetched lately, in front of a store that is far away.

    fetch ─▶ here? ──yes─▶ a checked copy          no ─▶ fetched into the directory once, however many ask ─▶ a copy
                                                         and what was longest unused goes, until there is room

Everything else is the store's. A file in the directory is as good as its digest says, since each copy is checked: one
that was damaged is fetched again. The directory is one process's own, and may be removed at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from duly.adapters.blob_content import copy_checked, digits_of, translated
from duly.core.errors import BlobCorrupt, NotFound
from duly.ports import Blobs


class CachedBlobs:
    """The Blobs port over another, with its fetches remembered: at most `limit` bytes of them."""

    def __init__(self, blobs: Blobs, directory: str | os.PathLike[str], *, limit: int) -> None:
        self._blobs = blobs
        self._root = Path(directory)
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()  # longest unused first
        self._total = 0
        self._coming: dict[str, asyncio.Task[None]] = {}
        self.hits = 0
        self.misses = 0
        for path in sorted(self._root.iterdir(), key=lambda each: each.stat().st_mtime_ns):
            path.unlink()  # of a former life: what is in it is not known to be whole

    async def put(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int, expected: str | None = None
    ) -> tuple[str, int]:
        return await self._blobs.put(data, limit=limit, expected=expected)

    def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._blobs.get(digest, start=start, end=end)

    async def size(self, digest: str) -> int | None:
        return await self._blobs.size(digest)

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        return await self._blobs.delete(digests, unused_for=unused_for)

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        return await self._blobs.page(after, limit, unused_for=unused_for)

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        kept = self._root / digits_of(digest)
        mode = 0o755 if executable else 0o644
        if digest in self._sizes:
            self._sizes.move_to_end(digest)
            try:
                with translated(digest):
                    await asyncio.to_thread(copy_checked, digest, kept, Path(path), mode)
            except (NotFound, BlobCorrupt):
                self._forget(digest)  # removed or damaged here: the store has it
            else:
                self.hits += 1
                return
        self.misses += 1
        await self._bring(digest, kept)
        if digest in self._sizes:
            with contextlib.suppress(NotFound), translated(digest):
                await asyncio.to_thread(copy_checked, digest, kept, Path(path), mode)
                return
        await self._blobs.fetch(digest, path, executable=executable)  # larger than the cache, or gone already

    async def _bring(self, digest: str, kept: Path) -> None:
        """Have it in the directory, unless it is too large for that; the first who asks fetches for all."""
        coming = self._coming.get(digest)
        if coming is None:
            coming = self._coming[digest] = asyncio.create_task(self._download(digest, kept))
            coming.add_done_callback(lambda _: self._coming.pop(digest, None))
        await asyncio.shield(coming)  # who waits with others and is cancelled leaves them their download

    async def _download(self, digest: str, kept: Path) -> None:
        size = await self._blobs.size(digest)
        if size is None:
            raise NotFound(f"there is no blob {digest}")
        if size > self._limit:
            return
        while self._total + size > self._limit:
            self._forget(next(iter(self._sizes)))
        await self._blobs.fetch(digest, str(kept))
        self._sizes[digest] = size
        self._total += size

    def _forget(self, digest: str) -> None:
        size = self._sizes.pop(digest, None)
        if size is not None:
            self._total -= size
            (self._root / digits_of(digest)).unlink(missing_ok=True)
