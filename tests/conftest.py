"""What all tests share: async tests run on asyncio."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is the loop that duly runs on."""
    return "asyncio"
