"""What all tests share: async tests run on asyncio, and programs that they start heed Ctrl-C."""

from __future__ import annotations

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `nohup … &` ignores it, and every program started inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is the loop that duly runs on."""
    return "asyncio"
