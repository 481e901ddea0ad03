"""The broker of a cluster, from settings; and what it counts, as metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.boot.broker import make_broker
from duly.core.errors import InvalidInput
from duly.settings import Settings
from duly.telemetry import Telemetry
from duly.testing import ManualClock


async def test_settings_become_a_broker(tmp_path: Path) -> None:
    """Keys of any length from 16 characters on become keys of one length; its counters become metrics."""
    clock = ManualClock()
    blobs = ObstoreBlobs(tmp_path, clock=clock)
    settings = Settings(nats=["nats://secret@127.0.0.1:4222"], cluster_key=["a long enough key", "another one of them"])
    broker = make_broker(settings, clock=clock, blobs=blobs, name="w-1")
    assert [len(key) for key in broker.options.keys] == [32, 32]
    telemetry = Telemetry()
    telemetry.watch_broker(broker.counters)
    broker.counters["refused.forged"] += 2
    text = telemetry.render()[0].decode()
    assert 'duly_broker_messages_total{reason="forged",what="refused"} 2.0' in text
    assert 'duly_broker_messages_total{reason="",what="dropped"} 0.0' in text
    await broker.close()


@pytest.mark.parametrize(
    ("settings", "pointer"),
    [
        (Settings(), "/nats"),
        (Settings(nats=["http://h"]), "/nats"),
        (Settings(nats=["nats://h"], cluster_key=["a long enough key", "short"]), "/cluster_key/1"),
        (Settings(nats=["nats://h"], nats_credentials="/does/not/exist"), "/nats_credentials"),
    ],
)
async def test_settings_that_make_no_broker_are_refused(settings: Settings, pointer: str, tmp_path: Path) -> None:
    """With the setting that is wrong."""
    clock = ManualClock()
    with pytest.raises(InvalidInput) as caught:
        make_broker(settings, clock=clock, blobs=ObstoreBlobs(tmp_path, clock=clock), name="w-1")
    assert caught.value.errors[0].pointer == pointer
