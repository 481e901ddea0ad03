"""Tokens in their file: private, replaced whole, noticed when it changes, and closed when it cannot be read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from duly.core.errors import NotFound, Unavailable
from duly.core.instants import SECOND
from duly.core.tokens import Scope
from duly.faces.tokens import TokenFile, create_token, list_tokens, revoke_token

NOW = 1_800_000_000_000_000


class Ticker:
    """A monotonic clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def make(path: Path, number: int = 0, scope: Scope = Scope.READ) -> str:
    entropy = bytes([number]) * 38
    return create_token(path, entropy=entropy, scope=scope, namespaces=("*",), now=NOW + number)[0]


def test_the_file_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    """Mode 0600, and the text of the token is not in it."""
    path = tmp_path / "duly" / "tokens.json"
    text = make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text.rpartition("_")[2] not in path.read_text()
    assert [record.scope for record in list_tokens(path)] == ["read"]
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []


def test_a_change_is_noticed_within_a_second(tmp_path: Path) -> None:
    """A new token works, and a revoked one stops, after at most one second of the monotonic clock."""
    path, clock = tmp_path / "tokens.json", Ticker()
    tokens = TokenFile(path, monotonic=clock)
    assert tokens.records() == {}
    make(path, 1)
    assert tokens.records() == {}, "looked at again before a second had passed"
    clock.now += SECOND
    assert list(tokens.records()) == ["010101010101"]
    revoke_token(path, "010101010101", now=NOW + 5)
    clock.now += SECOND
    assert not tokens.records()["010101010101"].usable(NOW + 5)


def test_revoking_twice_changes_nothing_and_an_unknown_key_is_not_found(tmp_path: Path) -> None:
    """The first instant of revocation stays."""
    path = tmp_path / "tokens.json"
    make(path, 1)
    first = revoke_token(path, "010101010101", now=NOW + 5)
    assert revoke_token(path, "010101010101", now=NOW + 9) == first
    with pytest.raises(NotFound):
        revoke_token(path, "ffffffffffff", now=NOW)


def test_a_file_that_cannot_be_read_closes_the_door(tmp_path: Path) -> None:
    """A broken file raises Unavailable until it is whole again; it never counts as no tokens."""
    path, clock = tmp_path / "tokens.json", Ticker()
    make(path, 1)
    tokens = TokenFile(path, monotonic=clock)
    assert len(tokens.records()) == 1
    path.write_text('{"version": 1, "tokens": [')
    clock.now += SECOND
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"tokens\.json"):
            tokens.records()
        clock.now += SECOND
    path.unlink()
    make(path, 2)
    clock.now += SECOND
    assert list(tokens.records()) == ["020202020202"]
