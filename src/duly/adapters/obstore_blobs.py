"""Blobs in a directory, through obstore: `sha256/ab/<the other 62 digits>`, written once, never changed.

    put    stream ──▶ tmp/<token> ──fsync──▶ link under its digest, if that is not there ──fsync directory──▶ answer
    get    hashed while it streams; the last chunk is held back until the whole is known to be right
    delete by age: the file's mtime is when it was last put, by this node's clock

obstore does not fsync local files (it renames at once), so that is done here before a digest is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from duly.core.errors import BlobCorrupt, DulyError, InvalidInput, NotFound, StorageFull, TooLarge, Unavailable
from duly.core.instants import DAY
from duly.ports import Clock

CHUNK: Final = 1024 * 1024  # bytes; what a stream holds in memory is a few of them
ABANDONED_AFTER: Final = DAY  # an upload whose process died

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LARGE: Final = 128 * 1024  # hashing this much blocks the loop long enough to be worth a thread


def _key(digest: str) -> str:
    """The object's path. A digest from outside never becomes a path unchecked."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidInput.at("", f"not a digest: {digest[:80]!r}; it looks like sha256:<64 hexadecimal digits>")
    return f"sha256/{match[1][:2]}/{match[1][2:]}"


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
        measured = _Measured(data, limit)
        try:
            await self._receive(temporary, measured)
            digest = measured.digest
            if expected is not None and digest != expected:
                raise InvalidInput.at("", f"the content is {digest}, not {expected}")
            with _errors():
                await self._commit(temporary, digest, measured.size)
        finally:
            (self._root / temporary).unlink(missing_ok=True)
        return digest, measured.size

    async def _receive(self, temporary: str, measured: _Measured) -> None:
        """Write the stream to a temporary object. What the stream itself raises comes through as it is."""
        try:
            with _errors():
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
        with _errors(digest):
            options: obstore.GetOptions = {} if whole else {"range": (max(0, start), end)}
            found = await obstore.get_async(self._store, _key(digest), options=options)
            if not whole:
                async for chunk in found.stream(min_chunk_size=CHUNK):
                    yield bytes(chunk)
                return
            content = hashlib.sha256()
            held = b""
            async for chunk in found.stream(min_chunk_size=CHUNK):
                await _update(content, chunk)
                if held:
                    yield held
                held = bytes(chunk)
            _check(digest, content.hexdigest())
            if held:
                yield held

    async def size(self, digest: str) -> int | None:
        try:
            with _errors():
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
        with _errors(digest):
            await asyncio.to_thread(_copy_checked, digest, source, Path(path), 0o755 if executable else 0o644)


class _Measured:
    """A stream on its way in: hashed, counted, and stopped at the limit."""

    def __init__(self, data: AsyncIterable[bytes] | bytes, limit: int) -> None:
        self._data = data
        self._limit = limit
        self._content = hashlib.sha256()
        self.size = 0
        self.failure: Exception | None = None

    @property
    def digest(self) -> str:
        """Of what has passed."""
        return f"sha256:{self._content.hexdigest()}"

    async def chunks(self) -> AsyncIterator[bytes]:
        """The stream itself."""
        if isinstance(self._data, bytes):
            await self._count(self._data)
            yield self._data
            return
        try:
            async for chunk in self._data:
                await self._count(chunk)
                yield chunk
        except Exception as problem:
            self.failure = problem
            raise

    async def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLarge(f"the content is larger than {self._limit} bytes")
        await _update(self._content, chunk)


async def _update(content: hashlib._Hash, chunk: bytes) -> None:
    if len(chunk) < _LARGE:
        content.update(chunk)
    else:
        await asyncio.to_thread(content.update, chunk)


def _check(digest: str, found: str) -> None:
    if digest != f"sha256:{found}":
        raise BlobCorrupt(f"the stored bytes of {digest} have the sha256 {found}; they were not delivered")


def _copy_checked(digest: str, source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    content = hashlib.sha256()
    try:
        with source.open("rb") as reading, partial.open("xb") as writing:
            while chunk := reading.read(CHUNK):
                content.update(chunk)
                writing.write(chunk)
        _check(digest, content.hexdigest())
        partial.chmod(mode)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


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


@contextlib.contextmanager
def _errors(digest: str = "") -> Iterator[None]:
    """obstore's and the system's errors as ours; FileNotFoundError is left to who knows what was asked for."""
    try:
        yield
    except FileNotFoundError as problem:
        if digest:
            raise NotFound(f"there is no blob {digest}") from problem
        raise
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk under the blob store is full; nothing was kept") from problem
        raise Unavailable(f"the blob store does not work: {problem}") from problem
    except BaseError as problem:
        if "os error 28" in str(problem) or "os error 122" in str(problem):
            raise StorageFull("the disk under the blob store is full; nothing was kept") from problem
        raise Unavailable(f"the blob store does not work: {problem}") from problem
