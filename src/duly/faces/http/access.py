"""Who may do what: tokens, scopes, namespaces; and from where: hosts and origins.

    Host ─▶ Origin ─▶ token or this machine ─▶ scope of the route ─▶ namespace

Every route names the scope that it needs; there is none without. While no token exists, callers on this machine
may do everything, others nothing.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Protocol

from duly.core.errors import Forbidden, Malformed, Overloaded, Unauthenticated
from duly.core.instants import MINUTE, SECOND
from duly.core.tokens import (
    LOCAL,
    Principal,
    Scope,
    TokenRecord,
    check_namespace,
    matches,
    principal_of,
    token_key_id,
)
from duly.ports import Clock

DEFAULT_NAMESPACE: Final = "default"
_FAILURES: Final = 20  # wrong tokens of one address within the window, before it is told to wait
_WINDOW: Final = MINUTE
_ADDRESSES: Final = 10_000  # remembered; beyond that the one longest silent is forgotten
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


class TokenSource(Protocol):
    """Where tokens come from."""

    def records(self) -> Mapping[str, TokenRecord]:
        """The tokens by key id, as of at most a second ago. Raises Unavailable: then nobody gets in."""
        ...


class Access:
    """Decides for each request who asks, and whether they may."""

    def __init__(self, tokens: TokenSource | None, *, clock: Clock) -> None:
        """Without a source of tokens, this machine's callers are the only ones, and may do everything."""
        self._tokens = tokens
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, int]] = OrderedDict()  # address → (window's start, count)

    def admit(self, authorization: str | None, address: str | None, needed: Scope) -> Principal:
        """The caller, if the scope suffices. `address` is the peer's IP.

        Raises Unauthenticated, Forbidden, Overloaded (too many wrong tokens from this address), Unavailable.
        A right token is taken from any address, so that a stranger behind the same proxy cannot lock others out.
        """
        records = {} if self._tokens is None else self._tokens.records()
        if not records:
            if is_loopback(address):
                return LOCAL
            raise Unauthenticated("no token exists yet; make one on the server: duly token create")
        if authorization is None:
            raise Unauthenticated
        scheme, _, text = authorization.partition(" ")
        text = text.strip()
        key_id = token_key_id(text) if scheme.lower() == "bearer" else None
        record = None if key_id is None else records.get(key_id)
        if key_id is None or not matches(text, record) or record is None:
            self._count_failure(address)
            raise Unauthenticated("this token is not known here")
        if not record.usable(self._clock.wall()):
            raise Unauthenticated("this token was revoked or has expired")
        principal = principal_of(record)
        if not principal.allows(needed):
            raise Forbidden(f"this needs the scope {needed.word}; the token has {record.scope}")
        return principal

    def holder(self, key_id: str, needed: Scope) -> Principal:
        """The caller who signed in with that token, as the token is now.

        Raises Unauthenticated, Forbidden, Unavailable.
        """
        records = {} if self._tokens is None else self._tokens.records()
        record = records.get(key_id)
        if record is None or not record.usable(self._clock.wall()):
            raise Unauthenticated("this token was revoked or has expired")
        principal = principal_of(record)
        if not principal.allows(needed):
            raise Forbidden(f"this needs the scope {needed.word}; the token has {record.scope}")
        return principal

    def _count_failure(self, address: str | None) -> None:
        key = _network(address or "")
        now = self._clock.monotonic()
        start, count = self._failures.pop(key, (now, 0))
        if now - start >= _WINDOW:
            start, count = now, 0
        self._failures[key] = (start, min(count + 1, _FAILURES + 1))
        if len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)
        if count >= _FAILURES:
            raise Overloaded("too many wrong tokens from this address", retry_after=(start + _WINDOW - now) / SECOND)


def namespace_of(principal: Principal, asked: str | None, *, single: bool) -> str | None:
    """The namespace that a request speaks of; None is any, and only for callers that may reach all.

    `single`: what is made needs one namespace; it is `default` for callers that may reach all and name none.
    Raises Forbidden for one out of reach, Malformed when the token has several and none is named.
    """
    if asked is not None:
        check_namespace(asked, pointer="/query/namespace")
        if not principal.reaches(asked):
            raise Forbidden(f"the token does not reach the namespace {asked}")
        return asked
    if principal.namespaces is None:
        return DEFAULT_NAMESPACE if single else None
    if len(principal.namespaces) == 1:
        return principal.namespaces[0]
    raise Malformed("the token has several namespaces: name one, as ?namespace=… or in the header Duly-Namespace")


def is_loopback(address: str | None) -> bool:
    """True for an IP address, or the name, of this machine's loopback."""
    if address is None:
        return False
    return address.startswith(("127.", "::ffff:127.")) or address in _LOOPBACK


def bind_problem(host: str, tokens: TokenSource) -> str | None:
    """Why a server must not listen on `host`, or None: beyond loopback it needs at least one token."""
    if is_loopback(host) or tokens.records():
        return None
    return (
        f"listening on {host} would let others in, and no token exists; make one first: "
        "duly token create --scope admin --namespace '*'"
    )


def hosts_for(bind: str, configured: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The host names that a server bound to `bind` answers to; None: any.

    On loopback a list is kept even when none is configured, because a foreign page can make a browser resolve
    its own name to 127.0.0.1 (DNS rebinding). Elsewhere tokens guard, and names are not known here.
    """
    if is_loopback(bind):
        return (*sorted(_LOOPBACK), *configured)
    return configured or None


class Doors:
    """Which Host and Origin headers a request may carry."""

    def __init__(self, hosts: tuple[str, ...] | None, origins: tuple[str, ...] = ()) -> None:
        """`hosts`: names without port, None for any. `origins`: further ones for changes, as https://ops.example."""
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def answers_to(self, host: str | None) -> bool:
        """True if this server goes by that name (a Host header, with or without port)."""
        if self._hosts is None:
            return True
        match = None if host is None else _HOST.fullmatch(host)
        return match is not None and match.group(1).lower() in self._hosts

    def may_change(self, origin: str | None, fetch_site: str | None, host: str | None) -> bool:
        """True if a page of that origin, or no page at all, may send requests that change things."""
        if origin is None:
            return fetch_site in (None, "same-origin", "none")
        origin = origin.lower()
        if origin in self._origins:
            return True
        scheme, _, authority = origin.partition("://")
        if scheme not in ("http", "https") or not authority or host is None:
            return False
        return _with_port(authority, scheme) == _with_port(host.lower(), scheme)


def _with_port(authority: str, scheme: str) -> str:
    """The authority with its port spelled out; 443 and 80 may be left out on either side."""
    if authority.rpartition(":")[2].isdigit() and not authority.endswith("]"):
        return authority
    return f"{authority}:{443 if scheme == 'https' else 80}"


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 one: a single caller has a whole one to itself."""
    if ":" not in address or address.startswith("::ffff:"):
        return address
    head, gap, _ = address.partition("::")
    groups = head.split(":")
    return ":".join(groups[:4]) + ("::" if gap and len(groups) < 4 else "")
