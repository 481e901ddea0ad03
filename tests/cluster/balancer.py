"""HAProxy with the configuration that `deploy/` offers, before the servicers of a test's cluster."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from duly.cluster.postgres_server import free_ports
from system.served import until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


def haproxy() -> str | None:
    """The program, if it is installed; in CI it is."""
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None and os.environ.get("DULY_DEPLOY") == "required":
        pytest.fail("haproxy is not installed")
    return found


@contextlib.contextmanager
def balanced(servicers: Sequence[str], folder: Path) -> Iterator[str | None]:
    """The address before the servicers; None where HAProxy is not installed."""
    program = haproxy()
    if program is None:
        yield None
        return
    [port] = free_ports(1)
    text = CONFIGURATION.read_text().replace("bind :7300", f"bind 127.0.0.1:{port}")
    for number, url in enumerate(servicers, 1):
        text = re.sub(rf"server servicer{number} \S+", f"server servicer{number} {url.removeprefix('http://')}", text)
    (folder / "haproxy.cfg").write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", folder / "haproxy.cfg"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), what="HAProxy with a servicer behind it")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(url: str) -> bool:
    """A servicer behind it is ready."""
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
