"""Power cuts: a store is recorded while it works, its files are cut anywhere, and what a new process finds is compared.

What the disk holds after a cut is one of three things (https://sqlite.org/wal.html, synchronous=FULL):

    appending      the database as it was, and the log up to any byte: what was synced, and a part of what was not
    checkpointing  the log whole, and the database with any of the log's pages in it
    starting over  the database whole, and the log with its first bytes written over, the rest of before

Each call of the store here is one commit, and its answer is one acknowledgement. So after a cut the content must be
exactly that of the last commit that lies whole before it: nothing acknowledged is gone, nothing is half there.
"""

from __future__ import annotations

import hashlib
import random  # noqa: TID251 - seeded
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec

from conformance.samples import SECOND, T0, W1, dispatch, job, missed, retry, run, start, succeed, worker
from duly.adapters.sqlite_store import SqliteStore
from duly.core.model import CommandTask, JobId, Output
from duly.testing import ManualClock

HEADER = 32
FRAME_HEADER = 24
TABLES = ("job", "label", "run", "history", "worker", "term", "blob_ref", "orphan", "tally", "migration", "shard")


class Commit(msgspec.Struct, frozen=True):
    """The log's length after an acknowledgement, and the content that was acknowledged by then."""

    end: int
    content: str


class Recording(msgspec.Struct, frozen=True):
    """Two stretches of work with a checkpoint between them."""

    page: int  # bytes
    before: bytes  # the database until the checkpoint
    log: bytes
    commits: list[Commit]
    after: bytes  # the database from the checkpoint on
    second_log: bytes
    second_commits: list[Commit]


class Cut(msgspec.Struct, frozen=True):
    """What a disk may hold, and the content that has to be found on it."""

    name: str
    database: bytes
    log: bytes
    content: str


def content_of(db: apsw.Connection) -> str:
    """A digest of every row of every table."""
    digest = hashlib.sha256()
    for table in TABLES:
        rows = db.execute(f"select * from {table}").fetchall()
        for row in sorted(map(repr, rows)):
            digest.update(f"{table}{row}\n".encode())
    return digest.hexdigest()


def log_end(log: bytes, page: int) -> int:
    """Where the frames of the log's present generation end."""
    salts = log[16:24]
    at = HEADER
    while at + FRAME_HEADER + page <= len(log) and log[at + 8 : at + 16] == salts:
        at += FRAME_HEADER + page
    return at


class _Recorder:
    def __init__(self, path: Path, store: SqliteStore) -> None:
        self.path = path
        self.log = Path(f"{path}-wal")
        self.store = store
        self.reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self.page = int(self.reader.pragma("page_size"))
        self.commits: list[Commit] = []

    def acknowledged(self) -> None:
        """Note where the log ends now, and what the file says."""
        self.commits.append(Commit(log_end(self.log.read_bytes(), self.page), content_of(self.reader)))


async def _work(store: SqliteStore, noted: _Recorder, rounds: int, first: int) -> None:
    """Every verb that writes, on `rounds` jobs; single calls, so that each is a commit of its own."""
    shard = store.shards[0]
    for number in range(first, first + rounds):
        name = f"job-{number:04}"
        mine = job(
            name,
            labels={"team": "a", "n": str(number)},
            task=CommandTask(argv=("true",), inputs={"in": f"sha256:{number:064x}"}),
        )
        waiting = run(name)
        await store.create([(mine, [waiting, missed(name, -60 * SECOND)])])
        noted.acknowledged()
        given = dispatch(waiting, opened=(run(name, 60 * SECOND, ordinal=2),))
        await store.apply([given])
        noted.acknowledged()
        begun = start(given.run)
        await store.apply([begun])
        noted.acknowledged()
        again = retry(begun.run, 5 * SECOND)
        await store.apply([again])
        noted.acknowledged()
        second = dispatch(again.run)
        await store.apply([second])
        noted.acknowledged()
        output = Output(path="x", size=1, digest=f"sha256:{number + 10_000:064x}")
        done = succeed(second.run, outputs=(output,))
        await store.apply([done])
        noted.acknowledged()
        changed = msgspec.structs.replace(mine, version=2, priority=9, labels={"team": "b"})
        await store.change(changed, 1, [run(name, 120 * SECOND, job_version=2)])
        noted.acknowledged()
        if number % 3 == 0:
            await store.change(msgspec.structs.replace(changed, version=3, state="deleted"), 2, [])
            noted.acknowledged()
        await store.beat(shard, worker(W1), 5 * SECOND)
        noted.acknowledged()
        await store.hold(shard, "me", 3 * SECOND)
        noted.acknowledged()
        # Many in one commit: all of them or none.
        batch = [(job(f"{name}-{n}"), [run(f"{name}-{n}", n)]) for n in range(8)]
        await store.create(batch)
        noted.acknowledged()
        await store.apply([dispatch(runs[0]) for _, runs in batch])
        noted.acknowledged()
    await store.prune(100)
    noted.acknowledged()


async def record(folder: Path, rounds: int) -> Recording:
    """Let a store work and keep what it wrote."""
    path = folder / "shard.db"
    store = SqliteStore(path, clock=ManualClock(T0))
    await store.migrate()
    assert store._writer is not None
    store._db.wal_autocheckpoint(0)  # here the checkpoint comes when it is asked for
    store._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    noted = _Recorder(path, store)
    empty = Commit(HEADER, content_of(noted.reader))
    noted.commits.append(empty)
    await _work(store, noted, rounds, 0)
    before, log, commits = path.read_bytes(), noted.log.read_bytes(), noted.commits
    store._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    after = path.read_bytes()
    noted.commits = [Commit(HEADER, commits[-1].content)]
    await _work(store, noted, rounds, rounds)
    second = noted.log.read_bytes()
    assert path.read_bytes() == after, "no checkpoint was due"
    noted.reader.close()
    await store.close()
    return Recording(noted.page, before, log, commits, after, second, noted.commits)


def cuts(recording: Recording, *, every: int, seed: int = 1) -> Iterator[Cut]:
    """Cuts at page and frame boundaries, each `every`-th of them, and as many within."""
    dice = random.Random(seed)
    page, frame = recording.page, FRAME_HEADER + recording.page

    def boundaries(size: int) -> Iterator[int]:
        points = [0, HEADER, *range(HEADER + frame, size + 1, frame)]
        for point in points[::every]:
            yield point
            yield min(size, point + dice.randrange(1, frame))  # a torn frame
            yield min(size, point + FRAME_HEADER)

    def found(commits: list[Commit], end: int) -> str:
        return max((commit for commit in commits if commit.end <= max(end, HEADER)), key=lambda each: each.end).content

    for end in boundaries(len(recording.log)):
        yield Cut(f"log cut at {end}", recording.before, recording.log[:end], found(recording.commits, end))
        zeros = recording.log[:end] + bytes(min(len(recording.log) - end, 3 * frame))  # grown, and not written
        yield Cut(f"log zero from {end}", recording.before, zeros, found(recording.commits, end))
    whole = recording.commits[-1].content
    pages = len(recording.after) // page
    changed = [
        n for n in range(pages) if recording.after[n * page : (n + 1) * page] != _page(recording.before, n, page)
    ]
    for count in range(0, len(changed) + 1, every):
        for some in (changed[:count], dice.sample(changed, count)):
            database = bytearray(recording.before)
            for n in sorted(some):
                if len(database) < n * page:
                    database += bytes(n * page - len(database))
                database[n * page : (n + 1) * page] = recording.after[n * page : (n + 1) * page]
            yield Cut(f"{count} of {len(changed)} pages checkpointed", bytes(database), recording.log, whole)
    for end in boundaries(log_end(recording.second_log, page)):
        log = recording.second_log[:end] + recording.log[end:]
        yield Cut(f"log written over up to {end}", recording.after, log, found(recording.second_commits, end))


def _page(database: bytes, number: int, page: int) -> bytes:
    return database[number * page : (number + 1) * page]


def _laid_out(folder: Path, cut: Cut) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    path = folder / "shard.db"
    path.write_bytes(cut.database)
    Path(f"{path}-wal").write_bytes(cut.log)
    return path


async def reopened(folder: Path, cut: Cut, *, with_store: bool) -> None:
    """Open what is left and compare; with the store too, and write with it."""
    path = _laid_out(folder, cut)
    db = apsw.Connection(str(path))
    try:
        assert db.pragma("integrity_check") == "ok", cut.name
        assert content_of(db) == cut.content, cut.name
        both = db.execute("select r.job from run r join history h using (job, scheduled)").fetchall()
        assert not both, (cut.name, "a run is hot and finished")
        tally = dict(db.execute("select name, n from tally").fetchall())
        for state, word in enumerate(("waiting", "dispatched", "running")):
            [(n,)] = db.execute("select count(*) from run where state = ?", (state,)).fetchall()
            assert tally.get(word, 0) == n, (cut.name, word)
    finally:
        db.close()
    if not with_store:
        return
    store = SqliteStore(path, clock=ManualClock(T0 + 100 * SECOND))
    await store.migrate()
    for waiting, _ in await store.due("s0", T0 + 1_000 * SECOND, None, 10):
        assert not await store.apply([dispatch(waiting)]), cut.name
    assert await store.create([(job("after"), [run("after")])]) == [None]
    assert (await store.load([(JobId("after"), T0)]))[0] is not None
    await store.close()


def frames(recording: Recording) -> int:
    """How many frames were recorded."""
    frame = FRAME_HEADER + recording.page
    return (len(recording.log) + log_end(recording.second_log, recording.page)) // frame


def checked_magic(recording: Recording) -> bool:
    """The log is one of SQLite's, of the page size that is cut by."""
    magic, _, page = struct.unpack(">III", recording.log[:12])
    return magic in (0x377F0682, 0x377F0683) and page == recording.page
