"""Blobs in a directory, through obstore: `sha256/ab/<the other 62 digits>`, written once, never changed.

    put    stream ──▶ tmp/<token> ──fsync──▶ link under its digest, if that is not there ──fsync directory──▶ answer
    get    hashed while it streams; the last chunk is held back until the whole is known to be right
    delete by age: the file's mtime is when it was last put, by this node's clock

obstore does not fsync local files (it renames at once), so that is done here before a digest is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore

from duly.adapters.blob_content import CHUNK, Measured, check, copy_checked, digits_of, translated, update
from duly.core.errors import DulyError, InvalidInput, NotFound
from duly.core.instants import DAY
from duly.ports import Clock

ABANDONED_AFTER: Final = DAY  # an upload whose process died


def _key(digest: str) -> str:
    """The object's path."""
    digits = digits_of(digest)
    return f"sha256/{digits[:2]}/{digits[2:]}"


class ObstoreBlobs:
    """The Blobs port over a local directory, which is made if it is not there."""

    def __init__(self, directory: str | os.PathLike[str], *, clock: Clock) -> None:
        self._root = Path(directory).resolve()
        self._root.mkdir(parents=True, exist_ok=True)
        self._store = LocalStore(self._root)
        self._clock = clock

    async def put(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int, expected: str | None = None
    ) -> tuple[str, int]:
        if expected is not None:
            _key(expected)
        temporary = f"tmp/{secrets.token_hex(16)}"
        measured = Measured(data, limit)
        try:
            await self._receive(temporary, measured)
            digest = measured.digest
            if expected is not None and digest != expected:
                raise InvalidInput.at("", f"the content is {digest}, not {expected}")
            with translated():
                await self._commit(temporary, digest, measured.size)
        finally:
            (self._root / temporary).unlink(missing_ok=True)
        return digest, measured.size

    async def _receive(self, temporary: str, measured: Measured) -> None:
        """Write the stream to a temporary object. What the stream itself raises comes through as it is."""
        try:
            with translated():
                await obstore.put_async(
                    self._store, temporary, measured.chunks(), chunk_size=CHUNK, max_concurrency=2, use_multipart=True
                )
        except DulyError:
            if measured.failure is not None:
                raise measured.failure from None
            raise

    async def _commit(self, temporary: str, digest: str, size: int) -> None:
        """Give the object its name, durably; where the blob is there already, renew its age."""
        key = _key(digest)
        await asyncio.to_thread(self._settle, self._root / temporary)
        while True:
            try:
                await obstore.rename_async(self._store, temporary, key, overwrite=False)
            except AlreadyExistsError:
                if await asyncio.to_thread(self._renew, self._root / key, size):
                    break
                continue  # deleted, or found damaged, this moment: put it there after all
            break
        await asyncio.to_thread(_sync_directories, (self._root / key).parent, self._root)

    def _settle(self, path: Path) -> None:
        self._touch(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def _touch(self, path: Path) -> None:
        now = self._clock.wall() * 1_000
        os.utime(path, ns=(now, now))

    def _renew(self, path: Path, size: int) -> bool:
        """False if the blob is not there (any more), or was cut short and has been taken away."""
        try:
            if path.stat().st_size != size:
                path.unlink()
                return False
            self._touch(path)
        except FileNotFoundError:
            return False
        return True

    async def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        size = await self.size(digest)
        if size is None:
            raise NotFound(f"there is no blob {digest}")
        end = size if end is None else min(end, size)
        whole = start <= 0 and end == size
        if start >= end and not whole:
            return
        with translated(digest):
            options: obstore.GetOptions = {} if whole else {"range": (max(0, start), end)}
            found = await obstore.get_async(self._store, _key(digest), options=options)
            if not whole:
                async for chunk in found.stream(min_chunk_size=CHUNK):
                    yield bytes(chunk)
                return
            content = hashlib.sha256()
            held = b""
            async for chunk in found.stream(min_chunk_size=CHUNK):
                await update(content, chunk)
                if held:
                    yield held
                held = bytes(chunk)
            check(digest, content.hexdigest())
            if held:
                yield held

    async def size(self, digest: str) -> int | None:
        try:
            with translated():
                meta = await obstore.head_async(self._store, _key(digest))
        except FileNotFoundError:
            return None
        return meta["size"]

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        keys = [_key(digest) for digest in digests]
        return await asyncio.to_thread(self._delete, keys, self._clock.wall() - unused_for)

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        key = "" if after is None else _key(after)
        return await asyncio.to_thread(self._page, key, limit, self._clock.wall() - unused_for)

    def _page(self, after: str, limit: int, oldest: int) -> list[str]:
        """Directory by directory: 256 of them, each read whole."""
        found: list[str] = []
        root = self._root / "sha256"
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if f"sha256/{folder.name}/g" <= after:
                continue  # every name in it comes before
            for path in sorted(folder.iterdir()):
                if f"sha256/{folder.name}/{path.name}" <= after:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if _put_at(path) <= oldest:
                        found.append(f"sha256:{folder.name}{path.name}")
                if len(found) == limit:
                    return found
        return found

    def _delete(self, keys: list[str], oldest: int) -> int:
        """Blobs last put at or before `oldest`.

        Each is moved aside first and looked at again: one that is put again between the look and the removal would
        be lost otherwise. It goes back to its place.
        """
        (self._root / "tmp").mkdir(exist_ok=True)
        deleted = 0
        for key in keys:
            path = self._root / key
            aside = self._root / "tmp" / secrets.token_hex(16)
            try:
                if _put_at(path) > oldest:
                    continue
                path.rename(aside)
            except FileNotFoundError:
                continue
            if _put_at(aside) > oldest:
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(aside)
            else:
                deleted += 1
            aside.unlink()
        abandoned = self._clock.wall() - ABANDONED_AFTER
        for path in (self._root / "tmp").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _put_at(path) <= abandoned:
                    path.unlink()
        return deleted

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        # A copy, not a hard link: a task that writes to its file would change the blob.
        source = self._root / _key(digest)
        with translated(digest):
            await asyncio.to_thread(copy_checked, digest, source, Path(path), 0o755 if executable else 0o644)


def _put_at(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000


def _sync_directories(path: Path, root: Path) -> None:
    """Make names durable: the directory that a name is in, and those above it that may be new."""
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if path == root:
            return
        path = path.parent
