"""Blobs in a bucket of an S3-like store, through obstore: `sha256/ab/<62 digits>/<when put>-<token>`.

    put     stream ──▶ memory or a file, hashed ──▶ a key of its own ──▶ older copies go
    get     newest copy, hashed while it streams; the last chunk is held back until the whole is known to be right
    delete  the copies that are old, by their keys

S3 has no way to remove an object only if nobody has put it again meanwhile, so each put has a key that never was
there: nothing is ever overwritten, and what a `delete` has found to be old is not what a later put has written.
Putting again copies within the store. Uploads that were broken off are the bucket's to expire (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import msgspec
import obstore
from obstore.store import S3Store

from duly.adapters.blob_content import CHUNK, Measured, check, digits_of, translated, update
from duly.core.errors import InvalidInput, NotFound
from duly.ports import Clock

if TYPE_CHECKING:
    from obstore.store import S3Config

IN_MEMORY: Final = 1024 * 1024  # bytes of an upload; a larger one waits in a file until its digest is known
PART: Final = 8 * 1024 * 1024
LOOKS: Final = 5  # for a copy that was replaced between finding and reading it
AT_ONCE: Final = 16  # requests of one delete


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bucket is and who asks. Empty: Amazon's, and the credentials of the environment or the machine."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = ""


class _Copy(NamedTuple):
    """One object: a blob as it was put at `put_at`, µs by the putting node's clock. They sort by age."""

    key: str
    size: int

    @property
    def digest(self) -> str:
        _, first, rest, _ = self.key.rsplit("/", 3)
        return f"sha256:{first}{rest}"

    @property
    def put_at(self) -> int:
        return int(self.key.rpartition("/")[2].partition("-")[0], 16)


class S3Blobs:
    """The Blobs port over a bucket, which must exist."""

    def __init__(self, options: S3Options, *, clock: Clock) -> None:
        self._clock = clock
        self._store = S3Store(
            options.bucket,
            prefix=options.prefix or None,
            config=_config(options),
            client_options={
                "allow_http": options.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(minutes=10),  # of one request, the whole of a large blob included
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )

    async def put(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int, expected: str | None = None
    ) -> tuple[str, int]:
        if expected is not None:
            digits_of(expected)
        measured = Measured(data, limit)
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
            async for chunk in measured.chunks():
                if measured.size <= IN_MEMORY:
                    spool.write(chunk)
                else:
                    await asyncio.to_thread(spool.write, chunk)
            digest = measured.digest
            if expected is not None and digest != expected:
                raise InvalidInput.at("", f"the content is {digest}, not {expected}")
            spool.seek(0)
            with translated():
                await self._write(digest, measured.size, spool)
        return digest, measured.size

    async def _write(self, digest: str, size: int, spool: IO[bytes]) -> None:
        """A copy of this moment; returns once it is the only one, or a newer one is."""
        key = f"{_folder(digest)}/{self._clock.wall():016x}-{secrets.token_hex(8)}"
        whole = [copy for copy in await self._copies(digest) if copy.size == size]
        if not (whole and await self._copied(whole[-1].key, key)):
            await obstore.put_async(self._store, key, spool, chunk_size=PART, max_concurrency=4)
        copies = await self._copies(digest)
        newest = max((copy for copy in copies if copy.size == size), default=None)
        older = [copy.key for copy in copies if copy != newest]
        if older:
            await obstore.delete_async(self._store, older)

    async def _copied(self, source: str, target: str) -> bool:
        """False if the source is gone meanwhile."""
        try:
            await obstore.copy_async(self._store, source, target)
        except FileNotFoundError:
            return False
        return True

    async def _copies(self, digest: str) -> list[_Copy]:
        """Oldest first."""
        found = []
        async for page in obstore.list(self._store, _folder(digest), chunk_size=100):
            found += [_Copy(each["path"], each["size"]) for each in page]
        return sorted(found)

    async def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        for look in range(LOOKS):
            with translated(digest):
                copies = await self._copies(digest)
            if not copies:
                break
            copy = copies[-1]
            try:
                found = await self._open(digest, copy, start, end)
            except NotFound:
                if look + 1 == LOOKS:
                    raise
                continue
            if found is None:
                return
            async for chunk in found:
                yield chunk
            return
        raise NotFound(f"there is no blob {digest}")

    async def _open(self, digest: str, copy: _Copy, start: int, end: int | None) -> AsyncIterator[bytes] | None:
        """The chunks of a copy, or of a part of it; None if the part is empty."""
        end = copy.size if end is None else min(end, copy.size)
        whole = start <= 0 and end == copy.size
        if start >= end and not whole:
            return None
        options: obstore.GetOptions = {} if whole else {"range": (max(0, start), end)}
        with translated(digest):
            found = await obstore.get_async(self._store, copy.key, options=options)
        return self._chunks(digest, found, whole=whole)

    async def _chunks(self, digest: str, found: obstore.GetResult, *, whole: bool) -> AsyncIterator[bytes]:
        content = hashlib.sha256()
        held = b""
        with translated(digest):
            async for chunk in found.stream(min_chunk_size=CHUNK):
                if not whole:
                    yield bytes(chunk)
                    continue
                await update(content, chunk)
                if held:
                    yield held
                held = bytes(chunk)
            if whole:
                check(digest, content.hexdigest())
            if held:
                yield held

    async def size(self, digest: str) -> int | None:
        with translated():
            copies = await self._copies(digest)
        return copies[-1].size if copies else None

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        oldest = self._clock.wall() - unused_for
        for digest in digests:
            digits_of(digest)
        turns = asyncio.Semaphore(AT_ONCE)

        async def delete(digest: str) -> bool:
            async with turns:
                copies = await self._copies(digest)
                old = [copy.key for copy in copies if copy.put_at <= oldest]
                if old:
                    await obstore.delete_async(self._store, old)
                return bool(old) and len(old) == len(copies)

        with translated():
            return sum(await asyncio.gather(*map(delete, digests)))

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        oldest = self._clock.wall() - unused_for
        offset = None if after is None else f"{_folder(after)}/g"  # behind all copies, whose names are hexadecimal
        found: list[str] = []
        newest: _Copy | None = None
        with translated():
            async for objects in obstore.list(self._store, "sha256", offset=offset, chunk_size=1_000):
                for each in objects:
                    copy = _Copy(each["path"], each["size"])
                    if newest is not None and copy.digest != newest.digest and newest.put_at <= oldest:
                        found.append(newest.digest)
                        if len(found) == limit:
                            return found
                    newest = copy
        if newest is not None and newest.put_at <= oldest:
            found.append(newest.digest)
        return found

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with translated(digest):
                await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
                with await asyncio.to_thread(partial.open, "xb") as file:
                    async for chunk in self.get(digest):
                        await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(partial.chmod, 0o755 if executable else 0o644)
                await asyncio.to_thread(partial.replace, target)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)


def _folder(digest: str) -> str:
    digits = digits_of(digest)
    return f"sha256/{digits[:2]}/{digits[2:]}"


def _config(options: S3Options) -> S3Config:
    config: S3Config = {"region": options.region}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.access_key:
        config["access_key_id"] = options.access_key
        config["secret_access_key"] = options.secret_key
    return config
