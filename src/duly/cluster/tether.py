"""Becomes another program whose end is tied to its parent's: run as a script, before anything else of a process.

    python -I -S tether.py '{"parent": PID, "signal": N, "account": [UID, GID] | null, "listen": FD | null}' PROGRAM …

The kernel sends the signal when the parent dies, however it dies; nothing outlives a killed supervisor. As root the
program gets an ordinary account, of which the directory that it starts in and the script itself need know nothing. A
listening socket becomes descriptor 3, told as systemd tells it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

_PR_SET_PDEATHSIG = 1
_FIRST_GIVEN = 3


def main() -> None:
    """Ties, then becomes the program."""
    how = json.loads(sys.argv[1])
    program = sys.argv[2:]
    account = how.get("account")
    if account is not None:
        os.setgroups([])
        os.setgid(account[1])
        os.setuid(account[0])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, how["signal"], 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != how["parent"]:
        sys.exit("the parent is gone")  # it died before the tie was made
    listener = how.get("listen")
    if listener is not None:
        if listener == _FIRST_GIVEN:
            os.set_inheritable(listener, True)
        else:
            os.dup2(listener, _FIRST_GIVEN)
            os.close(listener)
        os.environ["LISTEN_FDS"] = "1"
        os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(program[0], program)  # noqa: S606 - a program and its arguments, as a list


if __name__ == "__main__":
    main()
