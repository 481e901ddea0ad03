"""A SQLite file as the store wants it: locked for one process, in WAL mode, with the schema of this version."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import apsw

from duly.adapters.sql import migrations
from duly.core.errors import Conflict

MEMORY: Final = ":memory:"
SAFE_SINCE: Final = (3, 51, 3)  # before it a WAL reset can corrupt a file that two connections use
CHECKPOINT_PAGES: Final = 4_000  # 16 MB of WAL; fewer means more, shorter pauses of the writer
CACHE_KIB: Final = 32 * 1024
STATEMENTS_KEPT: Final = 200


class FileLock:
    """An exclusive lock beside the database, so that a second process is told rather than let in."""

    def __init__(self, path: str) -> None:
        self._path = Path(f"{path}.lock")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            owner = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Conflict(
                f"{path} is in use by process {owner}; a SQLite shard belongs to one process at a time"
            ) from problem
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let others in. The file stays: removing it would let two in at once."""
        os.close(self._fd)


def open_writer(path: str) -> apsw.Connection:
    """The connection that writes. Raises Conflict if the SQLite library has the WAL-reset bug."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SAFE_SINCE:
        raise Conflict(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt files in WAL mode; 3.51.3 or newer is needed (apsw has it)"
        )
    if path != MEMORY:
        Path(path).touch(mode=0o600)
    db = apsw.Connection(path, statementcachesize=STATEMENTS_KEPT)
    if path != MEMORY:
        db.set_busy_timeout(5_000)
        mode = db.pragma("journal_mode", "wal")
        if mode != "wal":
            db.close()
            raise Conflict(f"{path} cannot be put into WAL mode (it is in {mode}); is it on a network disk?")
        db.pragma("synchronous", "full")
        db.wal_autocheckpoint(CHECKPOINT_PAGES)
    db.pragma("temp_store", "memory")
    db.pragma("cache_size", -CACHE_KIB)
    return db


def open_reader(path: str) -> apsw.Connection:
    """A connection that only reads."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=STATEMENTS_KEPT)
    db.set_busy_timeout(5_000)
    db.pragma("query_only", True)
    db.pragma("temp_store", "memory")
    db.pragma("cache_size", -CACHE_KIB // 4)
    return db


def missing_steps(db: apsw.Connection, shard: str) -> int:
    """How many migrations the file lacks.

    Raises Conflict for a schema newer than the code, a migration that was edited, or another shard's file.
    """
    if not db.table_exists(None, "migration"):
        return len(migrations("sqlite"))
    done = db.execute("select number, name, digest from migration order by number").fetchall()
    known = migrations("sqlite")
    if len(done) > len(known):
        raise Conflict(
            f"the file has schema {done[-1][0]} ({done[-1][1]}), this duly knows {len(known)}: use a newer duly"
        )
    for (number, name, digest), step in zip(done, known, strict=False):
        if (number, digest) != (step.number, step.digest):
            raise Conflict(f"migration {number} ({name}) differs from the one that this file was made with")
    for (name,) in db.execute("select name from shard"):
        if name != shard:
            raise Conflict(f"the file holds shard {name}, not {shard}")
    return len(known) - len(done)


def migrate(db: apsw.Connection, shard: str, now: int) -> int:
    """Bring the schema up to date; returns the number of steps taken. All or none of them are."""
    db.execute("begin exclusive")
    try:
        known = migrations("sqlite")
        missing = missing_steps(db, shard)
        if missing == len(known):
            db.execute(
                "create table if not exists migration("
                "number integer primary key, name text not null, digest text not null, applied_at integer not null"
                ") strict"
            )
        for step in known[len(known) - missing :]:
            db.execute(step.text)
            db.execute("insert into migration values (?, ?, ?, ?)", (step.number, step.name, step.digest, now))
        db.execute("insert into shard values (?) on conflict do nothing", (shard,))
    except BaseException:
        db.execute("rollback")
        raise
    db.execute("commit")
    return missing
