"""Ids of jobs: minted from an instant, or derived from an idempotency key; both sort by creation."""

from __future__ import annotations

import hashlib
import re

from duly.core.model import JobId

_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def mint_job_id(now: int, entropy: bytes) -> JobId:
    """A UUIDv7 (RFC 9562 §5.7) from the instant and ten random bytes: ids sort by creation."""
    value = (now // 1000) << 80 | int.from_bytes(entropy[:10], "big")
    return _uuid(value, version=7)


def keyed_job_id(namespace: str, key: str) -> JobId:
    """The id that an idempotency key stands for: a UUIDv8 of its hash, so that a repeat finds the first job.

    A key that is itself a UUIDv7 (as the Python client's are) lends the id its time, so that ids still sort by
    creation.
    """
    value = int.from_bytes(hashlib.blake2b(f"{namespace}\0{key}".encode(), digest_size=16).digest(), "big")
    if is_job_id(key) and key[14] == "7":
        value = int(key[:8] + key[9:13], 16) << 80 | value & ((1 << 80) - 1)
    return _uuid(value, version=8)


def _uuid(value: int, *, version: int) -> JobId:
    value = value & ~(0xF << 76) | version << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return JobId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")


def is_job_id(text: str) -> bool:
    """True for the form that ids have: 8-4-4-4-12 lower-case hexadecimal digits."""
    return _JOB_ID.fullmatch(text) is not None
