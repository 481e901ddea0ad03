"""The PostgreSQL of `duly cluster`: whoever starts it, wherever, nothing outside its directory is touched."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from duly.adapters.system_clock import SystemClock
from duly.cluster import postgres_server
from duly.cluster.postgres_server import PostgresServer, free_ports
from duly.cluster.supervision import Supervised
from duly.core.errors import Unavailable
from duly.core.instants import SECOND

CLOCK = SystemClock()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory that other accounts may not enter."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    modes = {path: path.stat().st_mode for path in (folder, *folder.parents)}
    yield folder
    assert {path: path.stat().st_mode for path in modes} == modes, "modes outside its own directory were changed"


def server(folder: Path, password: str = "p@ss/word") -> PostgresServer:
    """One over the directory."""
    return PostgresServer(folder / "s0", port=free_ports(1)[0], password=password, log=folder / "log")


async def test_it_starts_in_a_closed_directory_and_keeps_its_data(closed: Path) -> None:
    """Twice over the same data, also when root starts it; and it syncs what it acknowledges."""
    for life in (1, 2):
        postgres = server(closed)
        postgres.make()
        running = Supervised("s0", postgres.program, clock=CLOCK)
        running.start()
        await running.ready(30 * SECOND)
        try:
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                if life == 1:
                    connection.execute("create table kept (life int)")
                    connection.execute("insert into kept values (1)")
                assert connection.execute("select life from kept").fetchall() == [(1,)]
                for name in ("fsync", "synchronous_commit", "full_page_writes"):
                    row = connection.execute(f"show {name}").fetchone()
                    assert row == ("on",)
        finally:
            await running.stop()
    assert stat.S_IMODE((closed / "s0" / "data").stat().st_mode) == 0o700
    if os.geteuid() == 0:
        assert (closed / "s0" / "data").stat().st_uid != 0


async def test_it_wants_its_password(closed: Path) -> None:
    """Any user of the machine can reach loopback."""
    postgres = server(closed)
    postgres.make()
    running = Supervised("s0", postgres.program, clock=CLOCK)
    running.start()
    await running.ready(30 * SECOND)
    try:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://duly@127.0.0.1:{postgres.port}/postgres", connect_timeout=5)
    finally:
        await running.stop()


async def test_a_killed_server_comes_back_with_what_was_committed(closed: Path) -> None:
    """Its own pid file does not keep it from starting."""
    postgres = server(closed)
    postgres.make()
    running = Supervised("s0", postgres.program, clock=CLOCK)
    running.start()
    await running.ready(30 * SECOND)
    try:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("create table kept (life int)")
        await running.kill()
        while running.restarts == 0:
            await CLOCK.sleep(1_000)
        await running.ready(30 * SECOND)
        with psycopg.connect(postgres.url) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)
    finally:
        await running.stop()


async def test_what_a_broken_start_left_is_made_anew(closed: Path) -> None:
    """A directory without a database in it is no database."""
    postgres = server(closed)
    postgres.data.mkdir(parents=True)
    (postgres.data / "half").write_text("")
    postgres.make()
    assert postgres.made
    assert not (postgres.data / "half").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as another account")
def test_programs_that_the_account_cannot_reach_are_copied(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment under /root; the copy is root's and is used again."""
    package = postgres_server.programs().parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setattr(postgres_server, "programs", lambda: closed / package.name / "pginstall" / "bin")
    with tempfile.TemporaryDirectory(prefix="duly-copies-") as copies:
        Path(copies).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", copies)
        postgres = server(closed)
        postgres.make()
        [copy] = Path(copies).iterdir()
        assert (copy.stat().st_uid, stat.S_IMODE(copy.stat().st_mode)) == (0, 0o755)
        assert postgres.program().argv[0] == str(copy / package.name / "pginstall" / "bin" / "postgres")
        copy.chmod(0o777)
        with pytest.raises(Unavailable, match="remove it"):
            postgres.program()
