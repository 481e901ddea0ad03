"""The text, the hash and the reach of access tokens."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from duly.core import tokens
from duly.core.errors import InvalidInput
from duly.core.tokens import Principal, Scope, TokenRecord, matches, mint_token, principal_of, token_key_id

ENTROPY = bytes(range(38))
NOW = 1_800_000_000_000_000


def mint(**changes: Any) -> tuple[str, TokenRecord]:
    given: dict[str, Any] = {"entropy": ENTROPY, "scope": Scope.SUBMIT, "namespaces": ("default",), "now": NOW}
    return mint_token(**(given | changes))


def test_text_names_its_key_and_only_the_hash_is_kept() -> None:
    """The record holds the key id and a hash, and nothing of the secret."""
    text, record = mint()
    assert text == f"duly_{ENTROPY[:6].hex()}_{ENTROPY[6:].hex()}"
    assert token_key_id(text) == record.id == "000102030405"
    assert ENTROPY[6:].hex() not in repr(record)
    assert matches(text, record)


@pytest.mark.parametrize(
    "text",
    ["", "duly", "duly_1_2", "duly_000102030405_" + "0" * 63, "DULY_000102030405_" + "0" * 64, "duly_" + "é" * 77],
)
def test_other_texts_are_no_tokens(text: str) -> None:
    """What has not the exact form has no key id, and matches nothing."""
    assert token_key_id(text) is None
    assert not matches(text, mint()[1])


def test_a_wrong_secret_and_an_unknown_key_take_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both compare a SHA-256 in constant time, so that time does not tell which of the two it was."""
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def watch(left: str, right: str) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(tokens.hmac, "compare_digest", watch)
    text, record = mint()
    wrong = text[:-1] + ("0" if text[-1] != "0" else "1")
    assert not matches(wrong, record)
    assert not matches(wrong, None)
    assert [len(left) for left, _ in compared] == [64, 64]


def test_scopes_are_a_ladder() -> None:
    """Each scope holds those below it; a worker's stands apart, and only an admin has it too."""
    ladder = [scope for scope in Scope if scope is not Scope.WORKER]
    for scope in ladder:
        caller = Principal("k", scope, None)
        assert [needed for needed in ladder if caller.allows(needed)] == [each for each in ladder if each <= scope]
        assert caller.allows(Scope.WORKER) == (scope is Scope.ADMIN)
        assert Scope.named(scope.word) is scope
    assert [needed for needed in Scope if Principal("k", Scope.WORKER, None).allows(needed)] == [Scope.WORKER]
    with pytest.raises(InvalidInput, match="all namespaces"):
        mint(scope=Scope.WORKER)
    with pytest.raises(InvalidInput, match="none of worker, read, submit, operate, admin"):
        Scope.named("root")


def test_a_star_reaches_every_namespace() -> None:
    """Without a star only the named ones are reached."""
    assert principal_of(mint(namespaces=("*",))[1]).reaches("anything")
    some = principal_of(mint(namespaces=("a", "b"))[1])
    assert some.reaches("a")
    assert not some.reaches("c")


def test_a_token_ends_when_it_expires_or_is_revoked() -> None:
    """At the instant itself it is over."""
    record = mint(expires_at=NOW + 10)[1]
    assert record.usable(NOW + 9)
    assert not record.usable(NOW + 10)
    revoked = TokenRecord(id="k", hash="", scope="read", namespaces=("*",), created_at=NOW, revoked_at=NOW)
    assert not revoked.usable(NOW)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"namespaces": ()}, "/namespaces"),
        ({"namespaces": ("ok", "Not Ok")}, "/namespaces/1"),
        ({"namespaces": ("../etc",)}, "/namespaces/0"),
        ({"expires_at": NOW}, "/expires_at"),
        ({"note": "two\nlines"}, "/note"),
    ],
)
def test_bad_tokens_are_refused_with_a_pointer(changes: dict[str, object], pointer: str) -> None:
    """Each complaint names its field."""
    with pytest.raises(InvalidInput) as caught:
        mint(**changes)
    assert caught.value.errors[0].pointer == pointer
