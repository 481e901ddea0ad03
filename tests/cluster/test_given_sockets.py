"""A servicer under socket activation: it is as careful with the sockets that it is given as with its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from duly.boot.serving import listen

SERVE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "duly.cli", "servicer", "--port", "0"])
"""


def test_a_given_socket_that_is_open_to_others_needs_a_token(tmp_path: Path) -> None:
    """Whatever the settings say of the address."""
    with listen("0.0.0.0", 0) as given:
        given.listen()
        done = subprocess.run(
            [sys.executable, "-c", SERVE, str(given.fileno())],
            pass_fds=[given.fileno()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "DULY_STORES": "s0=postgresql://127.0.0.1:1/none"},
            timeout=30,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "no token exists" in done.stderr
