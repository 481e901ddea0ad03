"""Access tokens, the pure part: their text, their hash, and what they allow.

    duly_<key id>_<secret>       key id: 12, secret: 64 hexadecimal digits (32 random bytes)

The secret is shown once, when the token is made; only the SHA-256 of the whole text is kept. Scopes are steps of
one ladder: read < submit < operate < admin, each with all that lies below it; and, beside it, worker: what a worker
says of itself and its attempts, and nothing else. A token holds for the namespaces it names, or for all with `*`;
a worker's is for all.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from typing import Final, Literal

import msgspec

from duly.core.errors import InvalidInput

KEY_ID_BYTES: Final = 6
SECRET_BYTES: Final = 32
ALL_NAMESPACES: Final = "*"

ScopeName = Literal["worker", "read", "submit", "operate", "admin"]

_TOKEN = re.compile(r"duly_([0-9a-f]{12})_[0-9a-f]{64}", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
_NO_HASH: Final = "0" * 64


class Scope(enum.IntEnum):
    """What a caller may do. A higher scope holds all lower ones, except WORKER, which stands apart (see `allows`)."""

    WORKER = 0  # beat and report as a worker; no step of the ladder
    READ = 1  # look at jobs, runs, files, workers
    SUBMIT = 2  # create jobs, trigger them, upload files
    OPERATE = 3  # change, pause, delete jobs; cancel and retry runs
    ADMIN = 4  # what concerns the installation itself

    @property
    def word(self) -> ScopeName:
        """The name in files, commands and documents."""
        return self.name.lower()  # type: ignore[return-value]  # the members' names are the literal's

    @classmethod
    def named(cls, word: str) -> Scope:
        """The scope of a name. Raises InvalidInput with those that exist."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise InvalidInput.at("/scope", f"{word[:40]!r} is none of worker, read, submit, operate, admin") from None


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a token. Instants are µs UTC; `hash` is the SHA-256 of its text, in hexadecimal digits."""

    id: str
    hash: str
    scope: ScopeName
    namespaces: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    note: str = ""

    def usable(self, now: int) -> bool:
        """True while neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Principal(msgspec.Struct, frozen=True):
    """Who asks: the token's key id ("" without a token), the scope, and the namespaces, None for all."""

    key_id: str
    scope: Scope
    namespaces: tuple[str, ...] | None

    def allows(self, needed: Scope) -> bool:
        """True if the scope reaches that far. Workers' calls are for workers and admins; workers make no others."""
        if needed is Scope.WORKER:
            return self.scope in (Scope.WORKER, Scope.ADMIN)
        return self.scope >= needed

    def reaches(self, namespace: str) -> bool:
        """True for a namespace of the token."""
        return self.namespaces is None or namespace in self.namespaces


LOCAL: Final = Principal("", Scope.ADMIN, None)  # a caller on this machine while no token exists


def mint_token(
    *,
    entropy: bytes,
    scope: Scope,
    namespaces: tuple[str, ...],
    now: int,
    expires_at: int | None = None,
    note: str = "",
) -> tuple[str, TokenRecord]:
    """A new token's text and record, from 38 random bytes.

    Raises InvalidInput for no or a bad namespace, an end in the past, a note of more than 200 characters.
    """
    if not namespaces:
        raise InvalidInput.at("/namespaces", 'name at least one namespace, or "*" for all')
    if scope is Scope.WORKER and ALL_NAMESPACES not in namespaces:
        raise InvalidInput.at("/namespaces", 'a worker serves all namespaces: "*"')
    for index, namespace in enumerate(namespaces):
        if namespace != ALL_NAMESPACES:
            check_namespace(namespace, pointer=f"/namespaces/{index}")
    if expires_at is not None and expires_at <= now:
        raise InvalidInput.at("/expires_at", "lies in the past")
    if len(note) > 200 or not note.isprintable():
        raise InvalidInput.at("/note", "at most 200 printable characters")
    if len(entropy) < KEY_ID_BYTES + SECRET_BYTES:
        raise ValueError("too little entropy")
    key_id = entropy[:KEY_ID_BYTES].hex()
    text = f"duly_{key_id}_{entropy[KEY_ID_BYTES : KEY_ID_BYTES + SECRET_BYTES].hex()}"
    record = TokenRecord(
        id=key_id,
        hash=token_hash(text),
        scope=scope.word,
        namespaces=namespaces,
        created_at=now,
        expires_at=expires_at,
        note=note,
    )
    return text, record


def token_hash(text: str) -> str:
    """The SHA-256 of a token's text. A plain hash is enough: 256 random bits cannot be guessed offline."""
    return hashlib.sha256(text.encode()).hexdigest()


def token_key_id(text: str) -> str | None:
    """The key id in a token's text, None if it is no token."""
    match = _TOKEN.fullmatch(text) if len(text) < 128 else None
    return None if match is None else match.group(1)


def matches(text: str, record: TokenRecord | None) -> bool:
    """True if the text is that token. Takes as long for an unknown key id (None) as for a wrong secret."""
    expected = _NO_HASH if record is None else record.hash
    same = hmac.compare_digest(token_hash(text), expected)
    return same and record is not None


def principal_of(record: TokenRecord) -> Principal:
    """What the token allows."""
    namespaces = None if ALL_NAMESPACES in record.namespaces else record.namespaces
    return Principal(record.id, Scope.named(record.scope), namespaces)


def check_namespace(text: str, *, pointer: str = "/namespace") -> str:
    """The namespace, if it is one: 1 to 63 of a-z, 0-9, `_`, `.`, `-`, the first no sign. Raises InvalidInput."""
    if _NAMESPACE.fullmatch(text) is None:
        raise InvalidInput.at(
            pointer, "a namespace has 1 to 63 of a-z, 0-9, _, . and -, and starts with a letter or digit"
        )
    return text
