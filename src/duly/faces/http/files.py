"""Files over HTTP: blobs in and out, and what runs left. Always as attachments: no browser renders them here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Final

from msgspec import Meta

from duly.core.contract import BlobView, OutputView, View
from duly.core.errors import NotFound
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, Reply, Streamed, json_reply
from duly.faces.http.call import Call
from duly.faces.http.conditions import (
    attachment,
    digest_expected,
    is_digest,
    range_wanted,
    unchanged,
)
from duly.faces.http.operation import Operation, Returns, Takes
from duly.faces.http.problems import Headers
from duly.faces.http.query import Query

_BYTES: Final = {"type": "string", "format": "binary"}
_FOR_EVER: Final = (b"cache-control", b"private, max-age=31536000, immutable")


class UploadAsked(Query, frozen=True, kw_only=True):
    """What an upload shall be."""

    digest: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$", description="that the content must have")] | None = (
        None
    )


class OutputList(View, frozen=True, kw_only=True):
    """The files that a run left."""

    items: list[OutputView]
    next: str | None = None
    partial: bool = False
    missing_shards: tuple[str, ...] = ()


async def put_blob(call: Call) -> Answer:
    """Store the body under its digest."""
    expected = digest_expected(call.query(UploadAsked).digest, call.header(b"content-digest"), call.header(b"digest"))
    limit = call.context.settings.max_blob_bytes
    blob = await call.context.servicer.put_blob(call.chunks(limit), limit=limit, expected=expected)
    headers = [(b"location", f"/v1/blobs/{blob.digest}".encode()), (b"etag", f'"{blob.digest}"'.encode())]
    return json_reply(blob, status=201, headers=headers)


async def get_blob(call: Call) -> Answer:
    """A blob's bytes, or a range of them."""
    digest = call.path["digest"]
    size = await call.context.servicer.blob_size(digest) if is_digest(digest) else None
    if size is None:
        raise NotFound(f"there is no blob {digest[:80]!r}")
    return _download(call, digest, size, digest.removeprefix("sha256:"), _FOR_EVER)


async def list_output(call: Call) -> Answer:
    """The manifest of a run."""
    run = await call.context.servicer.get_run(call.path["run_id"], namespace=call.namespace)
    return json_reply(OutputList(items=run.outputs))


async def get_output(call: Call) -> Answer:
    """A file that a run left."""
    output, whole = await call.context.servicer.open_output(
        call.path["run_id"], call.path["path"], namespace=call.namespace
    )
    name = output.path.rpartition("/")[2]
    no_cache = (b"cache-control", b"private, no-cache")
    return _download(call, output.digest, output.size, name, no_cache, whole=whole)


def _download(
    call: Call,
    digest: str,
    size: int,
    name: str,
    caching: tuple[bytes, bytes],
    *,
    whole: AsyncIterator[bytes] | None = None,
) -> Answer:
    """The bytes of a digest as a file: whole, a range, or 304."""
    tag = f'"{digest}"'.encode()
    headers: Headers = [(b"etag", tag), caching, (b"accept-ranges", b"bytes")]
    if unchanged(call.header(b"if-none-match"), digest):
        return Reply(status=304, headers=headers)
    if_range = call.header(b"if-range")
    wanted = call.header(b"range") if if_range is None or if_range.strip().encode() == tag else None
    span = range_wanted(wanted, size)
    headers += [
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", attachment(name)),
        (b"content-security-policy", b"sandbox; default-src 'none'"),
    ]
    if span is None:
        headers.append((b"content-length", str(size).encode()))
        return Streamed(whole or call.context.servicer.open_blob(digest), headers=headers)
    headers.append((b"content-length", str(span.end - span.start).encode()))
    headers.append((b"content-range", f"bytes {span.start}-{span.end - 1}/{size}".encode()))
    chunks = call.context.servicer.open_blob(digest, start=span.start, end=span.end)
    return Streamed(chunks, headers=headers, status=206)


# -- the table ----------------------------------------------------------------------------------------------

_FILE_HEADERS: Final = ("ETag", "Content-Disposition", "Accept-Ranges", "Cache-Control")
_FILE: Final = {
    200: Returns("The bytes", _BYTES, media=("application/octet-stream",), headers=_FILE_HEADERS),
    206: Returns("The range", _BYTES, media=("application/octet-stream",), headers=(*_FILE_HEADERS, "Content-Range")),
    304: Returns("The client has these bytes", headers=("ETag",)),
}

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/blobs",
        id="putBlob",
        summary="Store a file under its digest",
        description="The same content twice is one blob. Content-Digest (sha-256) is checked, as is ?digest=.",
        tag="files",
        scope=Scope.SUBMIT,
        namespace="none",
        query=UploadAsked,
        headers=("Content-Digest",),
        body=Takes({"application/octet-stream": _BYTES}),
        returns={201: Returns("Stored", BlobView, headers=("ETag", "Location"))},
        problems=(413, 422),
        handler=put_blob,
    ),
    Operation(
        method="GET",
        path="/v1/blobs/{digest}",
        id="getBlob",
        summary="Read a file by its digest",
        tag="files",
        scope=Scope.READ,
        namespace="none",
        headers=("Range", "If-Range", "If-None-Match"),
        returns=_FILE,
        problems=(404, 416, 422),
        handler=get_blob,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/output",
        id="listOutput",
        summary="The files that a run left",
        tag="files",
        scope=Scope.READ,
        namespace="any",
        returns={200: Returns("The manifest", OutputList)},
        problems=(404, 422),
        handler=list_output,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/output/{path:path}",
        id="getOutput",
        summary="Read a file that a run left",
        tag="files",
        scope=Scope.READ,
        namespace="any",
        headers=("Range", "If-Range", "If-None-Match"),
        returns=_FILE,
        problems=(404, 416, 422),
        handler=get_output,
    ),
)
