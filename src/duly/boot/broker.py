"""The broker of a cluster, from settings."""

from __future__ import annotations

import hashlib
import random  # noqa: TID251 - this is where chance comes in
import secrets
from collections import ChainMap
from collections.abc import Mapping
from typing import Final

from duly.adapters.fallback_broker import FallbackBroker
from duly.adapters.http_broker import HttpBroker
from duly.adapters.nats_broker import NatsBroker
from duly.adapters.nats_link import NatsOptions
from duly.core.errors import InvalidInput
from duly.ports import Blobs, Clock
from duly.settings import Settings

LEAST_KEY: Final = 16  # characters of a cluster key


class WorkerBroker(FallbackBroker):
    """A worker's: the NATS servers, and servicers over HTTP while they are away. `counters` are NATS' and HTTP's."""

    def __init__(self, settings: Settings, *, clock: Clock, blobs: Blobs, name: str) -> None:
        """Raises InvalidInput as `make_broker` does, and for a servicer's address that is none."""
        self.nats = make_broker(settings, clock=clock, blobs=blobs, name=name)
        self.http = HttpBroker(settings.server, token=settings.token, clock=clock)
        self.counters: Mapping[str, int] = ChainMap(self.nats.counters, self.http.counters)
        super().__init__(self.nats, self.http, clock=clock)


def make_broker(settings: Settings, *, clock: Clock, blobs: Blobs, name: str) -> NatsBroker:
    """A broker over the NATS servers of the settings; `start` it, `close` it.

    Raises InvalidInput if none is named, for an address that is none, and for a key that is too short.
    """
    if not settings.nats:
        raise InvalidInput.at("/nats", 'no NATS server is named; write nats = ["nats://HOST:4222"] in duly.toml')
    for index, key in enumerate(settings.cluster_key):
        if len(key) < LEAST_KEY:
            raise InvalidInput.at(f"/cluster_key/{index}", f"a cluster key has at least {LEAST_KEY} characters")
    options = NatsOptions(
        credentials=settings.nats_credentials or None,
        ca=settings.nats_ca or None,
        keys=tuple(hashlib.sha256(key.encode()).digest() for key in settings.cluster_key),
    )
    return NatsBroker(
        settings.nats,
        clock=clock,
        blobs=blobs,
        name=name,
        dice=random.random,
        entropy=secrets.token_bytes,
        options=options,
    )
