"""What every blob store does with content, wherever it keeps it: measure, hash, check, copy, and name what failed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from obstore.exceptions import BaseError

from duly.core.errors import BlobCorrupt, InvalidInput, NotFound, StorageFull, TooLarge, Unavailable

CHUNK: Final = 1024 * 1024  # bytes; what a stream holds in memory is a few of them

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LARGE: Final = 128 * 1024  # hashing this much blocks the loop long enough to be worth a thread


def digits_of(digest: str) -> str:
    """The 64 digits of a digest. One from outside never becomes a path unchecked: raises InvalidInput."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidInput.at("", f"not a digest: {digest[:80]!r}; it looks like sha256:<64 hexadecimal digits>")
    return match[1]


class Measured:
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
        await update(self._content, chunk)


async def update(content: hashlib._Hash, chunk: bytes) -> None:
    """Hash a piece, off the loop if it is a large one."""
    if len(chunk) < _LARGE:
        content.update(chunk)
    else:
        await asyncio.to_thread(content.update, chunk)


def check(digest: str, found: str) -> None:
    """Raises BlobCorrupt unless the digits found are those of the digest."""
    if digest != f"sha256:{found}":
        raise BlobCorrupt(f"the stored bytes of {digest} have the sha256 {found}; they were not delivered")


def copy_checked(digest: str, source: Path, target: Path, mode: int) -> None:
    """A copy in one step: whole and right, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    content = hashlib.sha256()
    try:
        with source.open("rb") as reading, partial.open("xb") as writing:
            while chunk := reading.read(CHUNK):
                content.update(chunk)
                writing.write(chunk)
        check(digest, content.hexdigest())
        partial.chmod(mode)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def translated(digest: str = "") -> Iterator[None]:
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
        raise Unavailable(f"the blob store does not work: {_in_short(problem)}") from problem
    except BaseError as problem:
        if "os error 28" in str(problem) or "os error 122" in str(problem):
            raise StorageFull("the disk under the blob store is full; nothing was kept") from problem
        raise Unavailable(f"the blob store does not work: {_in_short(problem)}") from problem


def _in_short(problem: BaseError | OSError) -> str:
    """In one line; obstore tells its whole structure after what went wrong."""
    return " ".join(str(problem).partition("\n\nDebug source")[0].split())[:1_000]
