"""The part of `duly doctor` that looks at this machine: versions, directory, disk, limits, and whether commands run."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from duly.commands.doctor import Finding
from duly.core.errors import DulyError
from duly.settings import Settings
from duly.version import __version__

LEAST_FREE: Final = 1 << 30  # bytes
LEAST_FILES: Final = 10_000  # inodes
SPARE_FILES: Final = 200  # descriptors for stores, broker and clients' connections
FILES_A_SLOT: Final = 8  # pipes, sockets and logs of a command
NETWORK_FILES: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs"})


def installed() -> Iterator[Finding]:
    """duly itself and what it stands on."""
    yield Finding("duly", "ok", f"{__version__} in Python {platform.python_version()}")
    import apsw

    found = [f"SQLite {apsw.sqlite_lib_version()}"]
    for name in ("tzdata", "asyncpg", "nats-py"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Finding("libraries", "ok", ", ".join(found))


def machine(settings: Settings) -> Iterator[Finding]:
    """The directory and the limits of whoever asks."""
    there = Path(settings.dir).absolute()
    place = there
    while not place.exists():
        place = place.parent
    yield _directory(settings.dir, there, place)
    yield from _disk(place)
    yield _open_files(settings)
    yield _commands(place)
    yield from _webhooks(settings)


def _directory(name: str, there: Path, place: Path) -> Finding:
    if not place.is_dir():
        return Finding("directory", "failed", f"{place} is a file", "name another directory with dir = … or --dir")
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        detail = f"{place} cannot be written by user {os.geteuid()}"
        return Finding("directory", "failed", detail, f"run as its owner, or: chown {os.geteuid()} {place}")
    kind = _file_system(place)
    if kind in NETWORK_FILES:
        return Finding(
            "directory", "warning", f"{name} is on {kind}", "SQLite needs a local disk; use PostgreSQL for shared data"
        )
    return Finding("directory", "ok", f"{name} can be written" if place == there else f"{name} will be made")


def _disk(place: Path) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(place).free
        files = os.statvfs(place)
    except OSError as error:
        yield Finding("disk", "warning", f"{place}: {error.strerror}", "look at the disk: df, dmesg")
        return
    full = bool(files.f_files) and files.f_favail < LEAST_FILES
    low = free < LEAST_FREE
    yield Finding(
        "disk",
        "warning" if low or full else "ok",
        f"{free / (1 << 30):,.1f} GiB free" + (f", only {files.f_favail:,} more files" if full else ""),
        f"make room at {place}: history, logs and outputs need it" if low or full else "",
    )


def _open_files(settings: Settings) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    slots = settings.slots or os.cpu_count() or 1
    needed = SPARE_FILES + FILES_A_SLOT * slots
    many = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding("open files", "ok", f"{many} at once, from here")
    how = f"ulimit -n {needed}" if hard == resource.RLIM_INFINITY or hard >= needed else "raise the hard limit, too"
    advice = f"{how}; for a service: LimitNOFILE={needed}"
    return Finding("open files", "warning", f"{many} at once, from here; {slots} slots want {needed:,}", advice)


def _commands(place: Path) -> Finding:
    from duly.tasks.trial import try_command

    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        place = Path(tempfile.gettempdir())
    problem = asyncio.run(try_command(place))
    if problem is None:
        return Finding("commands", "ok", "run under a supervisor, with limits: isolation `process`")
    advice = "look at what confines duly: seccomp, AppArmor, TasksMax=, ulimit -u, /proc"
    if "ermission denied" in problem:
        advice = f"mount {place} without noexec, or name a dir elsewhere; then look at AppArmor or SELinux"
    elif "space" in problem.lower():
        advice = f"make room at {place}"
    return Finding("commands", "failed", f"an uploaded command cannot run: {problem}", advice)


def _webhooks(settings: Settings) -> Iterator[Finding]:
    """Secrets of this settings file that cannot be read keep a server from starting."""
    if not settings.webhook:
        return
    from duly.adapters.system_clock import SystemClock
    from duly.boot.webhooks import make_webhooks
    from duly.telemetry import Telemetry

    try:
        make_webhooks(settings, SystemClock(), Telemetry())
    except DulyError as error:
        where = error.errors[0].pointer if error.errors else "/webhook"
        yield Finding("webhooks", "failed", f"{where}: {error.detail}", "correct it in duly.toml; see docs/webhooks.md")
        return
    yield Finding("webhooks", "ok", f"{len(settings.webhook)} in the settings here; try them: duly webhook test")


def _file_system(place: Path) -> str:
    """The kind of file system at a place, as the kernel calls it; empty where that cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        words = line.split()
        mount = words[1].replace("\\040", " ")
        inside = place == Path(mount) or Path(mount) in place.parents
        if inside and len(mount) >= len(best):
            best, kind = mount, words[2]
    return kind
