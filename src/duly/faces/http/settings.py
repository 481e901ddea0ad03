"""What the HTTP face can be told, and what it works with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import msgspec

from duly.core.instants import MINUTE, SECOND
from duly.faces.http.access import Access, Doors, hosts_for
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

MIB: Final = 1 << 20


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in bytes, durations in µs. The defaults are for a server on loopback."""

    hosts: tuple[str, ...] | None = hosts_for("127.0.0.1")  # answered to; None: any (see access.hosts_for)
    origins: tuple[str, ...] = ()  # of pages elsewhere that may change things
    max_batch_bytes: int = 32 * MIB
    max_blob_bytes: int = 1024 * MIB  # of one upload, and of one multipart body
    patience: int = 30 * SECOND  # for a request to arrive; longer ones must keep up 16 KiB a second
    longest_wait: int = MINUTE  # of `Prefer: wait=…`
    heartbeat: int = 15 * SECOND  # of silent event streams
    max_streams: int = 500  # event streams at once: events, pages, logs
    sqlite: str | None = None  # the version in use, for /version


@dataclass(slots=True)
class Context:
    """What every operation may use. `stop` is set when the server shuts down: streams and waits then end."""

    servicer: Servicer
    access: Access
    doors: Doors
    telemetry: Telemetry
    settings: HttpSettings
    stop: asyncio.Event
    streams: int = 0  # open now
