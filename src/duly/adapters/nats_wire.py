"""How a message looks on NATS: a fixed head, a MAC where there is a key, and the message as JSON or its blob's name.

    "du" | version | kind | sender (8 bytes) | number (8 bytes) [| MAC (32 bytes)] | body

`sender` is drawn anew by every broker object and `number` counts what it has sent, so that a message heard twice is
known for a double whatever it says. With a key, the MAC (HMAC-SHA256) covers head, subject, reply subject and body: who
does not have the key can neither make a message nor send a recorded one to another subject. Bodies are JSON because
what users wrote (arguments, results) is kept as JSON text and travels untouched (decision 0017).
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from duly.core.messages import VERSION, AnyMessage

INLINE: Final = 512 * 1024  # a larger body goes to the blob store, and its name travels
ACCEPTED: Final = 8 * 1024**2  # a larger payload is not even looked at
LARGEST: Final = 256 * 1024**2  # a full Assign of the largest jobs is half of it

WINDOW: Final = 1_024  # numbers of one sender that are remembered
SENDERS: Final = 4_096  # senders that are remembered by one subscription

_HEAD: Final = struct.Struct(">2sBB8sQ")
_MAGIC: Final = b"du"
_MAC: Final = 32
_BODY: Final = 0
_BLOB: Final = 1
_SIGNED: Final = 0x80

_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)  # what its decoder raises of any bytes

Reason = Literal["garbage", "version", "forged", "oversize", "duplicate", "stale", "blob"]


class BlobBody(msgspec.Struct, frozen=True):
    """A message's body lies in the blob store."""

    digest: str
    size: int


class Sealed(msgspec.Struct, frozen=True):
    """What a payload holds, once it is believed: a message, or where its body is."""

    sender: bytes
    number: int
    content: AnyMessage | BlobBody


class Wire:
    """Makes payloads and reads them. `keys`: the first signs, any of them is believed; none: nothing is signed."""

    def __init__(self, sender: bytes, keys: Sequence[bytes] = ()) -> None:
        if len(sender) != 8:
            raise ValueError("a sender has 8 bytes")
        self._sender = sender
        self._keys = tuple(keys)
        self._number = 0
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(AnyMessage).decode
        self._decode_blob = msgspec.json.Decoder(BlobBody).decode

    def body(self, message: AnyMessage) -> bytes:
        """The message, encoded."""
        return self._encode(message)

    def seal(self, subject: str, reply: str, body: bytes | BlobBody) -> bytes:
        """A payload for this subject, with the next number."""
        self._number += 1
        kind = _BODY
        if isinstance(body, BlobBody):
            body, kind = self._encode(body), _BLOB
        if not self._keys:
            return _HEAD.pack(_MAGIC, VERSION, kind, self._sender, self._number) + body
        head = _HEAD.pack(_MAGIC, VERSION, kind | _SIGNED, self._sender, self._number)
        return head + _mac(self._keys[0], head, subject, reply, body) + body

    def open(self, subject: str, reply: str, payload: bytes) -> Sealed | Reason:
        """What a payload that came on a subject holds, or why it is not believed."""
        if len(payload) > ACCEPTED:
            return "oversize"
        if len(payload) < _HEAD.size or payload[:2] != _MAGIC:
            return "garbage"
        head = payload[: _HEAD.size]
        _, version, kind, sender, number = _HEAD.unpack(head)
        if version != VERSION:
            return "version"
        start = _HEAD.size + (_MAC if kind & _SIGNED else 0)
        body = payload[start:]
        if self._keys:
            mac = payload[_HEAD.size : start]
            if not any(hmac.compare_digest(mac, _mac(key, head, subject, reply, body)) for key in self._keys):
                return "forged"
        try:
            match kind & ~_SIGNED:
                case 0:
                    return Sealed(sender, number, self._decode(body))
                case 1:
                    named = self._decode_blob(body)
                    return Sealed(sender, number, named) if 0 <= named.size <= LARGEST else "oversize"
                case _:
                    return "garbage"
        except _UNREADABLE:
            return "garbage"

    def read(self, body: bytes) -> AnyMessage | Reason:
        """A message whose body came from the blob store."""
        try:
            message: AnyMessage = self._decode(body)
        except _UNREADABLE:
            return "garbage"
        return message


class Window:
    """Tells doubles: the last numbers of each sender that were heard. Bounded by `WINDOW` and `SENDERS`."""

    def __init__(self) -> None:
        self._heard: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # highest number, and a bit for each below it

    def refuses(self, sender: bytes, number: int) -> Reason | None:
        """`duplicate` for a number heard before, `stale` for one too old to tell; else it is noted."""
        known = self._heard.get(sender)
        if known is None:
            self._heard[sender] = (number, 1)
            if len(self._heard) > SENDERS:
                self._heard.popitem(last=False)
            return None
        highest, bits = known
        behind = highest - number
        if behind >= WINDOW:
            return "stale"
        if behind < 0:
            ahead = min(-behind, WINDOW)
            highest, bits = number, ((bits << ahead) | 1) & ((1 << WINDOW) - 1)
        elif bits >> behind & 1:
            return "duplicate"
        else:
            bits |= 1 << behind
        self._heard[sender] = (highest, bits)
        self._heard.move_to_end(sender)
        return None


def _mac(key: bytes, head: bytes, subject: str, reply: str, body: bytes) -> bytes:
    """Subjects hold no newline, so that the parts cannot be shifted against each other."""
    return hmac.digest(key, b"%s%s\n%s\n%s" % (head, subject.encode(), reply.encode(), body), "sha256")
