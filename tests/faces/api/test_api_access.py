"""Who gets in: tokens, addresses, hosts and origins, without the rest of the API."""

from __future__ import annotations

import pytest

from duly.core.errors import Forbidden, InvalidInput, Malformed, Overloaded, Unauthenticated
from duly.core.instants import MINUTE
from duly.core.tokens import Principal, Scope, TokenRecord, mint_token
from duly.faces.http.access import Access, Doors, bind_problem, hosts_for, is_loopback, namespace_of

NOW = 1_800_000_000_000_000


class HandClock:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.moved = 0

    def wall(self) -> int:
        return NOW + self.moved

    def monotonic(self) -> int:
        return self.moved

    async def sleep(self, duration: int) -> None:
        self.moved += duration

    async def wait(self, event: object, timeout: int | None) -> bool:
        return False


class Tokens:
    """Tokens in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, TokenRecord] = {}

    def add(self, scope: Scope = Scope.READ, *namespaces: str, expires_at: int | None = None) -> str:
        entropy = bytes([len(self.kept)]) * 38
        text, record = mint_token(
            entropy=entropy, scope=scope, namespaces=namespaces or ("*",), now=NOW, expires_at=expires_at
        )
        self.kept[record.id] = record
        return text

    def records(self) -> dict[str, TokenRecord]:
        return self.kept


def test_without_any_token_only_this_machine_gets_in() -> None:
    """Loopback may do everything, everyone else nothing."""
    access = Access(Tokens(), clock=HandClock())
    assert access.admit(None, "127.0.0.1", Scope.ADMIN).scope is Scope.ADMIN
    for address in ("10.0.0.7", "::2", None, "::ffff:10.0.0.1"):
        with pytest.raises(Unauthenticated):
            access.admit(None, address, Scope.READ)


def test_with_a_token_this_machine_needs_one_too() -> None:
    """The first token shuts the open door."""
    tokens = Tokens()
    text = tokens.add(Scope.SUBMIT)
    access = Access(tokens, clock=HandClock())
    with pytest.raises(Unauthenticated):
        access.admit(None, "127.0.0.1", Scope.READ)
    assert access.admit(f"Bearer {text}", "10.0.0.7", Scope.SUBMIT).scope is Scope.SUBMIT
    with pytest.raises(Forbidden, match="operate"):
        access.admit(f"bearer {text}", "10.0.0.7", Scope.OPERATE)


@pytest.mark.parametrize("scheme", ["Basic {}", "{}", "Bearer  x{}", "Token {}"])
def test_other_schemes_are_no_tokens(scheme: str) -> None:
    """Only a bearer token counts."""
    tokens = Tokens()
    text = tokens.add()
    with pytest.raises(Unauthenticated):
        Access(tokens, clock=HandClock()).admit(scheme.format(text), "127.0.0.1", Scope.READ)


def test_an_expired_token_is_over() -> None:
    """By the wall clock of the server."""
    tokens, clock = Tokens(), HandClock()
    text = tokens.add(Scope.READ, expires_at=NOW + MINUTE)
    access = Access(tokens, clock=clock)
    access.admit(f"Bearer {text}", "10.0.0.7", Scope.READ)
    clock.moved = MINUTE
    with pytest.raises(Unauthenticated, match="expired"):
        access.admit(f"Bearer {text}", "10.0.0.7", Scope.READ)


def test_guessing_is_slowed_down_per_address_without_locking_others_out() -> None:
    """A thousand guesses: 20 are refused, the rest told to wait; a right token still gets in, from there too."""
    tokens, clock = Tokens(), HandClock()
    right = tokens.add()
    access = Access(tokens, clock=clock)
    outcomes: list[type[Exception]] = []
    for number in range(1, 1001):
        with pytest.raises((Unauthenticated, Overloaded)) as caught:
            access.admit(f"Bearer duly_{number:012x}_{'0' * 64}", "10.0.0.7", Scope.READ)
        outcomes.append(caught.type)
    assert outcomes.count(Unauthenticated) == 20
    assert caught.value.retry_after == pytest.approx(60)
    access.admit(f"Bearer {right}", "10.0.0.7", Scope.READ)
    with pytest.raises(Unauthenticated):
        access.admit("Bearer nonsense", "10.0.0.8", Scope.READ)
    clock.moved = MINUTE
    with pytest.raises(Unauthenticated):
        access.admit("Bearer nonsense", "10.0.0.7", Scope.READ)


def test_one_ipv6_network_counts_as_one_address_and_the_table_is_bounded() -> None:
    """Addresses of one /64 share their failures; 20,000 networks do not grow the table without end."""
    tokens = Tokens()
    tokens.add()
    access = Access(tokens, clock=HandClock())
    for number in range(21):
        with pytest.raises(Unauthenticated if number < 20 else Overloaded):
            access.admit("Bearer x", f"2001:db8:1:2:{number:x}::1", Scope.READ)
    for number in range(20_000):
        with pytest.raises(Unauthenticated):
            access.admit("Bearer x", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}", Scope.READ)
    assert len(access._failures) == 10_000


def test_the_namespace_of_a_request() -> None:
    """Named, implied by the token, any, or asked for."""
    everywhere, one = Principal("", Scope.ADMIN, None), Principal("k", Scope.READ, ("a",))
    several = Principal("k", Scope.READ, ("a", "b"))
    assert namespace_of(everywhere, None, single=False) is None
    assert namespace_of(everywhere, None, single=True) == "default"
    assert namespace_of(everywhere, "b", single=False) == "b"
    assert namespace_of(one, None, single=True) == "a"
    assert namespace_of(several, "b", single=False) == "b"
    with pytest.raises(Forbidden):
        namespace_of(one, "b", single=False)
    with pytest.raises(Malformed, match="namespaces"):
        namespace_of(several, None, single=False)
    with pytest.raises(InvalidInput):
        namespace_of(everywhere, "'; drop table job; --", single=False)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:7350", True),
        ("LOCALHOST:1", True),
        ("[::1]:7350", True),
        ("duly.example", True),
        ("duly.example.evil.example", False),
        ("evil.example:7350", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        (None, False),
        ("[::1].evil", False),
    ],
)
def test_a_server_on_loopback_answers_to_its_own_names_only(host: str | None, answered: bool) -> None:
    """A page that resolves its name to 127.0.0.1 still sends its own Host header (DNS rebinding)."""
    assert Doors(hosts_for("127.0.0.1", ("duly.example",))).answers_to(host) is answered


def test_a_server_elsewhere_answers_to_any_name_unless_told() -> None:
    """Tokens guard it, and its names are not known."""
    assert hosts_for("0.0.0.0") is None
    assert Doors(None).answers_to(None)
    assert hosts_for("10.0.0.1", ("duly.example",)) == ("duly.example",)


@pytest.mark.parametrize(
    ("origin", "site", "allowed"),
    [
        (None, None, True),  # no browser
        (None, "same-origin", True),
        (None, "none", True),
        (None, "same-site", False),  # another port of this machine
        (None, "cross-site", False),
        ("http://localhost:7350", "same-origin", True),
        ("http://localhost:3000", None, False),
        ("http://evil.example", None, False),
        ("https://ops.example", "cross-site", True),
        ("null", None, False),
        ("", None, False),
        ("file://", None, False),
    ],
)
def test_pages_of_other_origins_may_not_change_anything(origin: str | None, site: str | None, allowed: bool) -> None:
    """The port counts; origins named in the settings may."""
    doors = Doors(None, ("https://ops.example",))
    assert doors.may_change(origin, site, "localhost:7350") is allowed


def test_default_ports_are_the_same_port() -> None:
    """https://x and x:443 are one origin."""
    assert Doors(None).may_change("https://duly.example", None, "duly.example")
    assert Doors(None).may_change("https://duly.example", None, "duly.example:443")
    assert not Doors(None).may_change("https://duly.example:444", None, "duly.example")


def test_only_loopback_may_listen_without_a_token() -> None:
    """Any other bind address is refused with what to do."""
    tokens = Tokens()
    assert bind_problem("127.0.0.1", tokens) is None
    assert bind_problem("localhost", tokens) is None
    for host in ("0.0.0.0", "::", "10.0.0.7", ""):
        assert "duly token create" in (bind_problem(host, tokens) or "")
    tokens.add()
    assert bind_problem("0.0.0.0", tokens) is None
    assert is_loopback("127.9.9.9")
    assert not is_loopback("128.0.0.1")
