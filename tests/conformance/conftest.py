"""The adapters that the suites go through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conformance.harness import STORES, Harness


@pytest.fixture(params=STORES)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Each store in turn, empty, at T0."""
    async with STORES[request.param](tmp_path) as opened:
        yield opened
