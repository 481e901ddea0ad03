"""A server of one's own, as `duly up` starts it, and a client of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from duly.faces.client import Client

APPS = Path(__file__).parent / "apps"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running server; it is stopped as an operator would, and must end well."""
    directory = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "duly.cli", "up", "--json", "--port", "0", "--dir", str(directory / "data")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--app", "office:duly", "--slots", "2"],
            cwd=APPS,
            env={**environment, "DULY_ALLOW_PRIVATE_ADDRESSES": "true"},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    with process.stdout as out:
        line = out.readline()
        if not line:
            process.wait(10)
            pytest.fail((directory / "log").read_text())
        yield json.loads(line)["url"]
        process.terminate()
        assert process.wait(20) == 0, (directory / "log").read_text()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    """A client of the server."""
    with Client.connect(server) as connected:
        yield connected


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with the server's functions."""
    monkeypatch.syspath_prepend(str(APPS))
    import office

    return office


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """An executable file that reads its input, prints, and leaves an output."""
    path = tmp_path / "report"
    path.write_text(
        '#!/bin/sh\necho "hello $1 $WHO"\necho careful >&2\n'
        '[ -f input/x.csv ] && cp input/x.csv output/copy.csv\nexit "${2:-0}"\n'
    )
    path.chmod(0o755)
    return path
