"""Sessions of browsers: a signed cookie that names the token that signed in, and nothing else.

    cookie  <key id or "-">.<expires, s>.<nonce>.<HMAC-SHA256>        CSRF token  HMAC of the cookie

No state is kept: a session ends when its time is up, when the token is revoked or expires, or when the key changes.
The key lies beside the tokens (`session.key`, mode 0600), so that all servicers of a directory know each other's
sessions; removing the file ends them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from duly.core.errors import Forbidden, Unavailable
from duly.core.instants import HOUR, SECOND

KEY_FILE: Final = "session.key"
LIFE: Final = 12 * HOUR
NOBODY: Final = "-"
_KEY_BYTES: Final = 32


class Session(NamedTuple):
    """What a cookie says. `key_id` is None for a browser that has not signed in."""

    key_id: str | None
    cookie: str


class Sessions:
    """Makes and reads cookies. `wall` in µs UTC, `entropy` gives random bytes."""

    def __init__(self, key: bytes, *, wall: Callable[[], int], entropy: Callable[[int], bytes]) -> None:
        self._key = key
        self._wall = wall
        self._entropy = entropy

    def begin(self, key_id: str | None) -> Session:
        """A new session."""
        expires = (self._wall() + LIFE) // SECOND
        body = f"{key_id or NOBODY}.{expires}.{self._entropy(16).hex()}"
        return Session(key_id, f"{body}.{self._mac('session', body)}")

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None if it is no valid one, or over."""
        if cookie is None or len(cookie) > 200:
            return None
        body, _, mac = cookie.rpartition(".")
        parts = body.split(".")
        if len(parts) != 3 or not hmac.compare_digest(mac.encode(), self._mac("session", body).encode()):
            return None
        if int(parts[1]) * SECOND <= self._wall():
            return None
        return Session(None if parts[0] == NOBODY else parts[0], cookie)

    def csrf(self, session: Session) -> str:
        """What a form of this session carries."""
        return self._mac("csrf", session.cookie)

    def check(self, session: Session | None, token: str) -> None:
        """Raises Forbidden for a form that is not of this session."""
        if session is None or not hmac.compare_digest(token.encode(), self.csrf(session).encode()):
            raise Forbidden("this form is too old, or not from here; go back, reload the page and try again")

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def session_key(path: Path, *, entropy: Callable[[int], bytes]) -> bytes:
    """The key in the file, made if there is none; servicers that make it at the same time agree on one.

    Raises Unavailable for a file that is no key.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, whole = tempfile.mkstemp(prefix=".session-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(entropy(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(whole, path)  # never replaces the key that another servicer has just made
        finally:
            Path(whole).unlink()
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise Unavailable(f"{path.name} is no session key; remove it and start again", retry_after=None)
    return key
