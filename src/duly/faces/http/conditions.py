"""Request headers that condition an answer: ETags, Prefer, Range, digests, idempotency keys."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple
from urllib.parse import quote

from duly.core.errors import InvalidInput, Malformed, PreconditionFailed
from duly.core.instants import SECOND
from duly.faces.http.problems import RangeNotSatisfiable

_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_WAIT: Final = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,6})"?\s*(?=$|[,;])', re.IGNORECASE)
_RANGE: Final = re.compile(r"bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class Tag(NamedTuple):
    """An entity tag; a weak one never matches where bytes or versions count."""

    weak: bool
    value: str


def parse_tags(header: str, name: str) -> list[Tag] | None:
    """The tags of an If-Match or If-None-Match header, None for `*`. Raises Malformed."""
    if header.strip() == "*":
        return None
    tags: list[Tag] = []
    position = 0
    while position < len(header):
        match = _TAG.match(header, position)
        if match is None:
            raise Malformed(f'{name} holds tags in double quotes, such as "3"')
        tags.append(Tag(match.group(1) is not None, match.group(2)))
        position = match.end()
    if not tags:
        raise Malformed(f'{name} is empty; it holds tags such as "3"')
    return tags


def versions_wanted(if_match: str | None) -> list[int] | None:
    """The job versions that an If-Match header accepts; None: any. Raises PreconditionFailed if it names none."""
    if if_match is None:
        return None
    tags = parse_tags(if_match, "If-Match")
    if tags is None:
        return None
    versions = [int(tag.value) for tag in tags if not tag.weak and tag.value.isascii() and tag.value.isdigit()]
    versions = [version for version in versions if version < 1 << 53]
    if not versions:
        raise PreconditionFailed("If-Match names no version that this job could have")
    return versions


def unchanged(if_none_match: str | None, tag: str) -> bool:
    """True if the client already has what `tag` names (If-None-Match, compared weakly)."""
    if if_none_match is None:
        return False
    tags = parse_tags(if_none_match, "If-None-Match")
    return tags is None or any(each.value == tag for each in tags)


def wait_wanted(prefer: str | None, longest: int) -> int | None:
    """µs to wait as by `Prefer: wait=10` (seconds), at most `longest`; None without that preference."""
    match = None if prefer is None else _WAIT.search(prefer)
    return None if match is None else min(int(match.group(1)) * SECOND, longest)


class Span(NamedTuple):
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


def range_wanted(header: str | None, size: int) -> Span | None:
    """The single range that a Range header asks of `size` bytes; None for all of them.

    Several ranges, other units and unreadable headers count as no header, as RFC 9110 has it.
    Raises RangeNotSatisfiable.
    """
    match = None if header is None else _RANGE.fullmatch(header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        if int(last) == 0 or size == 0:
            raise RangeNotSatisfiable(size)
        return Span(max(0, size - int(last)), size)
    start = int(first)
    end = size if last == "" else min(int(last) + 1, size)
    if last != "" and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return Span(start, end)


def idempotency_key(header: str | None) -> str | None:
    """The key, as it was sent. Raises Malformed for more than 255 characters or others than visible ASCII."""
    if header is not None and _KEY.fullmatch(header) is None:
        raise Malformed("Idempotency-Key has 1 to 255 visible ASCII characters")
    return header


def digest_expected(query: str | None, content_digest: str | None, digest: str | None) -> str | None:
    """The digest that an upload shall have: `?digest=`, else Content-Digest (RFC 9530) or Digest (RFC 3230).

    Other algorithms than sha-256 are passed over. Raises InvalidInput or Malformed for what cannot be read.
    """
    if query is not None:
        if _DIGEST.fullmatch(query) is None:
            raise InvalidInput.at("/query/digest", "write sha256: and 64 hexadecimal digits")
        return query
    for header, name in ((content_digest, "Content-Digest"), (digest, "Digest")):
        for member in (header or "").split(","):
            algorithm, _, value = member.strip().partition("=")
            if algorithm.lower() != "sha-256":
                continue
            try:
                raw = base64.b64decode(value.strip().strip(":"), validate=True)
            except (binascii.Error, ValueError):
                raw = b""
            if len(raw) != 32:
                raise Malformed(f"{name} holds no SHA-256 in base64")
            return f"sha256:{raw.hex()}"
    return None


def is_digest(text: str) -> bool:
    """True for the name of a blob."""
    return _DIGEST.fullmatch(text) is not None


def attachment(name: str) -> bytes:
    """A Content-Disposition header that saves under `name`, in ASCII and in UTF-8."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._- ") else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
