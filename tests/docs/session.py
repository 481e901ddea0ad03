"""A shell for a page: its commands one after the other, as typed into one terminal, in a folder of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from docs.blocks import ROOT, Block, Command, commands_of
from docs.expected import Known

PATIENCE: Final = 90.0  # seconds for one command, or for what stays up to say that it is; a machine may be busy
WIDTH: Final = 160  # columns of the terminal
_URL: Final = re.compile(r"http://(127\.0\.0\.1:[0-9]+)")


class Session:
    """The shell and what it left running. Everything ends with `close`."""

    def __init__(self, folder: Path, known: Known) -> None:
        self.folder = folder
        self.known = known
        self._background: list[subprocess.Popen[bytes]] = []
        self._shell: subprocess.Popen[bytes] | None = None
        self._terminal = -1
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "TERM": "dumb",  # no moving progress bars
            "NO_COLOR": "1",
            "COLUMNS": str(WIDTH),
            "LINES": "50",
            "DULY_PORT": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",  # as on a terminal
        }

    def run(self, block: Block) -> None:
        """Every command of a block, its output compared. AssertionError with the page's line."""
        commands = commands_of(block)
        if "background" in block.words:
            assert len(commands) == 1, f"{block}: one command stays up in a block"
            self._stay(block, commands[0])
            return
        for command, following in zip(commands, [*commands[1:], None], strict=True):
            printed, status = self._ask(self.known.actual(command.text), f"{block}: $ {command.text}")
            place = f"{block.page.relative_to(ROOT)}:{command.line}: $ {command.text}"
            told = following is not None and following.text == "echo $?"
            assert status == 0 or told or command.text == "echo $?", f"{place}\nended with {status}:\n{printed}"
            assert self.known.matches(command.output, printed), (
                f"{place}\nthe page says\n{command.output}\nand here it printed\n{printed}"
            )

    def _ask(self, command: str, place: str) -> tuple[str, int]:
        shell = self._started()
        assert shell.stdin is not None
        mark = f"--- {len(command)} {time.monotonic_ns()} ---"
        shell.stdin.write(f"{{ {command}\n}} </dev/null; _s=$?; printf '\\n{mark} %d\\n' $_s; (exit $_s)\n".encode())
        shell.stdin.flush()
        printed = b""
        end = re.compile(rb"\n" + re.escape(mark).encode() + rb" ([0-9]+)\n")
        deadline = time.monotonic() + PATIENCE
        while (found := end.search(printed)) is None:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._terminal], [], [], left)[0]
            assert ready, f"{place}\nhas not ended within {PATIENCE:.0f} s; so far it printed\n{printed.decode()}"
            printed += os.read(self._terminal, 65536)
        return printed[: found.start()].decode(), int(found[1])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._shell is None:
            self._terminal, inner = pty.openpty()
            termios.tcsetwinsize(inner, (50, WIDTH))
            mode = termios.tcgetattr(inner)
            mode[1] &= ~termios.OPOST  # line ends as they are written
            termios.tcsetattr(inner, termios.TCSANOW, mode)
            self._shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=inner,
                stderr=inner,
                start_new_session=True,
            )
            os.close(inner)
        return self._shell

    def _stay(self, block: Block, command: Command) -> None:
        """Start what stays up, and wait until it has said what the page says. A new server ends the one before."""
        if command.text.startswith("duly up"):
            self._end_background()
        log = self.folder / f".said-{block.line}"
        with log.open("wb") as out, (log.with_suffix(".err")).open("wb") as err:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.known.actual(command.text)}"],
                cwd=self.folder,
                env=self.env,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._background.append(process)

        def said() -> bool:
            printed = log.read_text()
            url = _URL.search(printed)
            if url and "7350" in command.output:
                self.known.address = url[1]
                self.env["DULY_SERVER"] = url[0]
            return self.known.matches(command.output, printed)

        _until(said, lambda: f"{block}: $ {command.text}\nsaid only\n{log.read_text()}{_tail(log)}", process)
        if self._shell is not None:
            self._ask(f"export DULY_SERVER={self.env.get('DULY_SERVER', '')}", str(block))

    def close(self) -> None:
        """End the shell and what stays up, by pid."""
        if self._shell is not None:
            assert self._shell.stdin is not None
            self._shell.stdin.close()
            self._shell.wait(timeout=PATIENCE)
            os.close(self._terminal)
        self._end_background()

    def _end_background(self) -> None:
        for process in self._background:
            process.send_signal(signal.SIGTERM)
        for process in self._background:
            process.wait(timeout=PATIENCE)
        self._background.clear()


def _tail(log: Path) -> str:
    return log.with_suffix(".err").read_text()[-2000:]


def _until(look: Callable[[], bool], told: Callable[[], str], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert process.poll() is None, f"ended with {process.returncode}: {told()}"
        assert time.monotonic() < deadline, told()
        select.select([], [], [], 0.05)
