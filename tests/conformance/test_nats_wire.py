"""What is believed of a payload: bytes from anywhere must give a reason, never an exception."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from duly.adapters.nats_wire import ACCEPTED, LARGEST, SENDERS, WINDOW, BlobBody, Sealed, Window, Wire
from duly.core.messages import Hint, Notice

SENDER = b"12345678"
KEY = b"k" * 32
MESSAGE = Hint(shard="s0")


def sealed(keys: tuple[bytes, ...] = (), subject: str = "x", reply: str = "") -> bytes:
    """A good payload."""
    wire = Wire(SENDER, keys)
    return wire.seal(subject, reply, wire.body(MESSAGE))


def test_a_message_is_read_as_it_was_written() -> None:
    """With a key and without; what users wrote inside stays as it is."""
    message = Notice(kind="run.progress", data={"progress": msgspec.Raw(b'{"a": [1, null]}')})
    for keys in ((), (KEY,)):
        wire = Wire(SENDER, keys)
        found = wire.open("x", "", wire.seal("x", "", wire.body(message)))
        assert found == Sealed(SENDER, 1, message)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_reason(payload: bytes) -> None:
    """They are not a message by chance."""
    assert Wire(SENDER).open("x", "", payload) in ("garbage", "version")


@given(st.integers(0, 300), st.integers(0, 255), st.sampled_from(((), (KEY,))))
def test_a_changed_byte_is_survived_and_with_a_key_always_noticed(at: int, by: int, keys: tuple[bytes, ...]) -> None:
    """Without a key it may be read as another message."""
    payload = bytearray(sealed(keys))
    before = payload[at % len(payload)]
    payload[at % len(payload)] ^= by
    found = Wire(SENDER, keys).open("x", "", bytes(payload))
    if keys and payload[at % len(payload)] != before:
        assert found in ("forged", "garbage", "version")


@given(st.binary(max_size=60))
def test_a_body_that_is_no_message_is_garbage(body: bytes) -> None:
    """Well framed, and nonsense inside."""
    wire = Wire(SENDER)
    found = wire.open("x", "", wire.seal("x", "", body))
    assert found == "garbage"


def test_a_body_nested_without_end_is_garbage() -> None:
    """It does not exhaust the stack."""
    wire = Wire(SENDER)
    for body in (b"[" * 200_000, b'{"type":"Notice","kind":"x","data":{"a":' + b"[" * 200_000):
        assert wire.open("x", "", wire.seal("x", "", body)) == "garbage"


def test_another_version_is_told_from_garbage() -> None:
    """So that an upgrade can be seen in the metrics."""
    payload = bytearray(sealed())
    payload[2] += 1
    assert Wire(SENDER).open("x", "", bytes(payload)) == "version"


def test_with_a_key_only_its_holders_are_believed_and_only_on_the_subject_they_wrote_to() -> None:
    """A recorded message cannot be sent elsewhere, nor its answer be led elsewhere."""
    wire = Wire(SENDER, (KEY,))
    good = sealed((KEY,), "x", "_INBOX.a")
    assert isinstance(wire.open("x", "_INBOX.a", good), Sealed)
    assert wire.open("y", "_INBOX.a", good) == "forged"
    assert wire.open("x", "_INBOX.b", good) == "forged"
    assert wire.open("x", "", sealed()) == "forged"
    assert wire.open("x", "", sealed((b"o" * 32,))) == "forged"


def test_keys_are_changed_by_believing_both_for_a_while() -> None:
    """The first signs, any is believed; whoever has no key believes all."""
    assert isinstance(Wire(SENDER, (b"n" * 32, KEY)).open("x", "", sealed((KEY,))), Sealed)
    assert isinstance(Wire(SENDER).open("x", "", sealed((KEY,))), Sealed)


def test_what_is_too_large_is_not_looked_at() -> None:
    """Nor fetched, if it says so itself."""
    wire = Wire(SENDER)
    assert wire.open("x", "", b"x" * (ACCEPTED + 1)) == "oversize"
    assert wire.open("x", "", wire.seal("x", "", BlobBody("sha256:" + "0" * 64, LARGEST + 1))) == "oversize"


def test_a_number_heard_before_is_a_duplicate_and_one_too_old_to_tell_is_stale() -> None:
    """In whatever order they come, and each sender by itself."""
    window = Window()
    assert [window.refuses(b"a", number) for number in (5, 3, 5, 3, 4)] == [None, None, "duplicate", "duplicate", None]
    assert window.refuses(b"b", 5) is None
    assert window.refuses(b"a", 5 + WINDOW) is None
    assert window.refuses(b"a", 5) == "stale"
    assert window.refuses(b"a", 6) is None
    assert window.refuses(b"a", 10**12) is None
    assert window.refuses(b"a", 10**12) == "duplicate"


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_no_number_is_taken_twice(numbers: list[int]) -> None:
    """Whatever the order."""
    window = Window()
    taken = [number for number in numbers if window.refuses(b"a", number) is None]
    assert len(taken) == len(set(taken))


def test_a_window_is_bounded() -> None:
    """The sender unheard for longest is forgotten."""
    window = Window()
    for sender in range(SENDERS + 1):
        window.refuses(str(sender).encode(), 1)
    assert window.refuses(b"1", 1) == "duplicate"
    assert window.refuses(b"0", 1) is None
