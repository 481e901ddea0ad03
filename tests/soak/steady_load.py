"""Half an hour of steady load on a real `duly up`: memory flat, files bounded, lateness steady.

    python tests/soak/steady_load.py [minutes] [runs per second]

Every-second jobs that keep five runs each, spread over the second, under retention every 10 s; each minute one line:
runs ended, lateness of the minute's sample, memory of the server and its children, size of the database and its log,
and beside them a bare `clock_nanosleep` loop in the same minute. At the end the last third is held against the second:
memory and files at most a tenth larger, p99 no more than the bare timer's p99 grew by, plus a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import httpx2
import msgspec

from duly.bench.measure import children, quantiles, resident

JOBS_OF_ONE_REQUEST = 500
SAMPLE = 1_000  # runs that a minute's lateness is taken from
DULY = (sys.executable, "-m", "duly.cli")


class Minute(msgspec.Struct):
    """What one minute showed. Latenesses in ms, sizes in MiB."""

    ended: int
    p50: float
    p99: float
    bare_p99: float
    server: float
    child: float
    database: float
    log: float


async def main(minutes: int, rate: int) -> int:
    """The report on stdout; 1 if something grew."""
    with tempfile.TemporaryDirectory(prefix="duly-soak-") as directory:
        options = ("up", "--dir", directory, "--port", "0", "--json", "--functions", "any", "--log-level", "warning")
        server = await asyncio.create_subprocess_exec(
            *DULY, *options, env={**os.environ, "DULY_RETENTION_INTERVAL": "10s"}, stdout=asyncio.subprocess.PIPE
        )
        assert server.stdout is not None
        url = json.loads(await server.stdout.readline())["url"]
        try:
            async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
                await _fill(client, rate)
                found = [await _minute(client, server.pid, Path(directory)) for _ in _told(minutes, rate)]
        finally:
            server.terminate()
            await server.wait()
    return _verdict(found, server.returncode or 0)


async def _fill(client: httpx2.AsyncClient, rate: int) -> None:
    """Every-second jobs, as many for each millisecond of the second."""
    jobs = [
        {
            "task": {"kind": "function", "name": "duly.bench.tasks:noop"},
            "schedule": f"every 1s from 2026-01-01T00:00:00.{number % 1_000:03}Z",
            "keep": {"runs": 5, "for": "1m"},
        }
        for number in range(rate)
    ]
    for start in range(0, rate, JOBS_OF_ONE_REQUEST):
        batch = jobs[start : start + JOBS_OF_ONE_REQUEST]
        (await client.post("/v1/jobs/batch", json={"jobs": batch})).raise_for_status()


def _told(minutes: int, rate: int) -> range:
    print(f"{rate} runs/s for {minutes} minutes")
    print("minute     ended   p50 ms   p99 ms  bare p99  server MiB  child MiB  database MiB  log MiB")
    return range(minutes)


async def _minute(client: httpx2.AsyncClient, pid: int, directory: Path) -> Minute:
    before = await _ended(client)
    timer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "duly.bench.timer", "10000", "6000", stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await timer.communicate()
    late = quantiles(await _latenesses(client))
    minute = Minute(
        ended=await _ended(client) - before,
        p50=late.p50,
        p99=late.p99,
        bare_p99=quantiles(json.loads(printed)).p99,
        server=resident(pid),
        child=max(map(resident, children(pid)), default=0.0),
        database=_size(directory, "*.db"),
        log=_size(directory, "*-wal"),
    )
    numbers = f"{minute.ended:9,} {minute.p50:8.3f} {minute.p99:8.3f} {minute.bare_p99:9.3f}"
    print(
        f"        {numbers} {minute.server:11.1f} {minute.child:10.1f} {minute.database:13.1f} {minute.log:8.1f}",
        flush=True,
    )
    return minute


async def _latenesses(client: httpx2.AsyncClient) -> list[int]:
    """In µs, of the newest runs that succeeded; a page may be short, even empty, while there is a next."""
    found: list[int] = []
    params: dict[str, str | int] = {"state": "succeeded", "limit": SAMPLE}
    while len(found) < SAMPLE:
        page = (await client.get("/v1/runs", params=params)).json()
        found += [round(run["lateness_ms"] * 1000) for run in page["items"]]
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    return found


async def _ended(client: httpx2.AsyncClient) -> int:
    return int(sum((await client.get("/v1/stats")).json()["ended"].values()))


def _size(directory: Path, pattern: str) -> float:
    return sum(file.stat().st_size for file in directory.glob(pattern)) / (1 << 20)


def _verdict(found: list[Minute], code: int) -> int:
    third = max(1, len(found) // 3)
    middle, last = found[-2 * third : -third] or found, found[-third:]
    bad = []
    for name in ("server", "child", "database", "log"):
        then, now = (max(getattr(minute, name) for minute in part) for part in (middle, last))
        if now > 1.1 * then + 1:
            bad.append(f"{name} grew from {then:.1f} to {now:.1f} MiB")
    then, now = (median(minute.p99 - minute.bare_p99 for minute in part) for part in (middle, last))
    if now > then + 1:
        bad.append(f"p99 over the bare timer grew from {then:.3f} to {now:.3f} ms")
    if code:
        bad.append(f"the server ended with {code}")
    print("flat, bounded, steady" if not bad else "; ".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(arguments + [30, 6_000][len(arguments) :]))))
