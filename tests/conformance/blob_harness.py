"""How the blob suite gets at a store: empty, its clock in hand, and what lies in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import obstore
from obstore.store import S3Store

from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.s3_blobs import S3Blobs, S3Options
from duly.ports import Blobs, Clock

LIMIT = 64 * 1024 * 1024
BIG = bytes(range(256)) * (5 * 4096)  # 5 MiB: several chunks


def sha(data: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """Bytes in pieces."""
    for i in range(0, len(data), size):
        yield data[i : i + size]


async def whole(blobs: Blobs, digest: str, **part: Any) -> bytes:
    """A blob, or a part of it, in one piece."""
    return b"".join([chunk async for chunk in blobs.get(digest, **part)])


class Kept(Protocol):
    """What lies in the store, behind its back."""

    def __call__(self) -> list[str]:
        """The names of everything that is kept."""
        ...

    def damage(self, data: bytes) -> None:
        """Replace the bytes of the only blob."""
        ...


class KeptFiles:
    """Of a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self) -> list[str]:
        return [str(path) for path in self._root.rglob("*") if path.is_file()]

    def damage(self, data: bytes) -> None:
        [path] = self()
        Path(path).write_bytes(data)


class KeptObjects:
    """Of a bucket."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def __call__(self) -> list[str]:
        return [each["path"] for each in obstore.list(self._store).collect()]

    def damage(self, data: bytes) -> None:
        [key] = self()
        obstore.put(self._store, key, data)


def in_directory(root: Path, clock: Clock) -> tuple[Blobs, Kept]:
    """A store in a directory that is not there yet."""
    return ObstoreBlobs(root / "made" / "blobs", clock=clock), KeptFiles(root / "made")


def s3_server() -> Iterator[str]:
    """A real S3 server over HTTP, in this process; yields its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def in_bucket(address: str, bucket: str, clock: Clock) -> tuple[Blobs, Kept]:
    """A store in a new bucket, beside other things."""
    httpx2.put(f"{address}/{bucket}", trust_env=False).raise_for_status()
    options = S3Options(bucket=bucket, prefix="duly/blobs", endpoint=address, access_key="key", secret_key="secret")
    looking = S3Store(
        bucket,
        config={"endpoint": address, "region": "us-east-1", "access_key_id": "key", "secret_access_key": "secret"},
        client_options={"allow_http": True},
    )
    return S3Blobs(options, clock=clock), KeptObjects(looking)
