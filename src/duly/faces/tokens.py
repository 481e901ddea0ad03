"""Tokens in a file: `tokens.json` in duly's directory, mode 0600, replaced whole and never changed in place.

    duly token create ──▶ tokens.json ──▶ every server with this directory, within a second

Once the file holds a token, even a revoked one, nobody gets in without a token: revoking the last one shuts the
door, it does not open it. To go back to open loopback access, remove the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from duly.core.errors import NotFound, Unavailable
from duly.core.instants import SECOND
from duly.core.tokens import Scope, TokenRecord, mint_token

FILE_NAME: Final = "tokens.json"
_RECHECK: Final = SECOND


class _TokenDocument(msgspec.Struct, frozen=True):
    """The file: a version for later forms, and the records by time of creation."""

    version: int
    tokens: tuple[TokenRecord, ...]


class TokenFile:
    """The tokens of a directory, as they are now: looked at again when the file changed, at most once a second."""

    def __init__(self, path: Path, *, monotonic: Callable[[], int]) -> None:
        """`monotonic` is the clock port's, in µs."""
        self.path = path
        self._monotonic = monotonic
        self._checked_at: int | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._records: dict[str, TokenRecord] = {}
        self._broken = ""

    def records(self) -> Mapping[str, TokenRecord]:
        """By key id; empty without a file. Raises Unavailable while the file cannot be read: then nobody gets in."""
        now = self._monotonic()
        if self._checked_at is None or now - self._checked_at >= _RECHECK:
            self._checked_at = now
            self._look()
        if self._broken:
            raise Unavailable(f"no token can be checked: {self._broken}")
        return self._records

    def _look(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._records, self._broken = None, {}, ""
            return
        except OSError as error:
            self._stamp, self._broken = None, error.strerror or "error"
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return
        try:
            self._records = {record.id: record for record in _read(self.path)}
        except OSError as error:
            self._stamp, self._broken = None, error.strerror or "error"
        except Unavailable as error:
            self._stamp, self._broken = stamp, error.detail
        else:
            self._stamp, self._broken = stamp, ""


def list_tokens(path: Path) -> list[TokenRecord]:
    """All tokens of the file, oldest first, revoked and expired ones too; empty without a file. Raises Unavailable."""
    try:
        return list(_read(path))
    except FileNotFoundError:
        return []


def create_token(
    path: Path,
    *,
    entropy: bytes,
    scope: Scope,
    namespaces: tuple[str, ...],
    now: int,
    expires_at: int | None = None,
    note: str = "",
) -> tuple[str, TokenRecord]:
    """Make a token; its text is returned here and never again. `now` and `expires_at` in µs UTC, 38 random bytes."""
    text, record = mint_token(
        entropy=entropy, scope=scope, namespaces=namespaces, now=now, expires_at=expires_at, note=note
    )
    with _locked(path):
        _write(path, (*list_tokens(path), record))
    return text, record


def revoke_token(path: Path, key_id: str, *, now: int) -> TokenRecord:
    """End a token now; servers notice within a second. Repeating it is harmless. Raises NotFound."""
    with _locked(path):
        records = list_tokens(path)
        for index, record in enumerate(records):
            if record.id == key_id:
                if record.revoked_at is None:
                    record = records[index] = replace(record, revoked_at=now)
                    _write(path, tuple(records))
                return record
    raise NotFound(f"there is no token with the key id {key_id[:40]!r}")


def _read(path: Path) -> tuple[TokenRecord, ...]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TokenDocument).tokens
    except msgspec.DecodeError as error:
        raise Unavailable(f"{path.name} is no file of tokens: {error}", retry_after=None) from None


def _write(path: Path, records: tuple[TokenRecord, ...]) -> None:
    """Replace the file atomically; the temporary one is made with mode 0600 and synced before the rename."""
    body = msgspec.json.format(msgspec.json.encode(_TokenDocument(version=1, tokens=records)), indent=1)
    handle, temporary = tempfile.mkstemp(prefix=".tokens-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; readers need no lock, because the file is replaced whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
