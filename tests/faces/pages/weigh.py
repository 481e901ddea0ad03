"""Server time and bytes of every page at size: `python tests/faces/pages/weigh.py` (10,000 jobs, 1,000,000 runs).

Prints a table: the first request of a fresh server, the median and the worst of the next ones (ms, measured by a
client on the same machine), the CPU that the server used for one of those (ms; true on a busy machine, too), and the
bytes of a page with all that it loads, before compression. `--directory` keeps and reuses what was seeded, which takes
a minute.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faces.pages.furnished import furnish_apart, running

ROUNDS = 20


def main() -> None:
    """Seed once, measure."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--directory", type=Path)
    asked.add_argument("--jobs", type=int, default=10_000)
    asked.add_argument("--runs", type=int, default=1_000_000)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.directory or Path(temporary) / "data"
        if not (directory / "shard-s0.db").exists():
            furnish_apart(directory, "--jobs", str(given.jobs), "--runs", str(given.runs))
        with running(directory) as url, httpx2.Client(base_url=url, timeout=60) as client:
            measure(client, int((directory / "shard-s0.db.lock").read_text()))


def cpu(pid: int) -> float:
    """The ms of CPU that the process has used; a tick is 10 ms, so that only sums over many requests mean much."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def measure(client: httpx2.Client, server: int) -> None:
    """The table."""
    stats = client.get("/v1/stats").json()
    sys.stdout.write(f"{stats['jobs']:,} jobs, {sum(stats['ended'].values()):,} finished runs\n")
    job = client.get("/v1/jobs", params={"name": "order-report"}).json()["items"][0]["id"]
    run = client.get("/v1/runs", params={"job_id": job, "state": "succeeded"}).json()["items"][0]["id"]
    sys.stdout.write(f"{'page':34}{'first':>9}{'median':>9}{'worst':>9}{'cpu':>9}{'bytes':>10}\n")
    for path in (
        "/", "/?rows=shard", "/jobs", "/jobs?q=team%3Dshop", "/jobs?q=00042", f"/jobs/{job}", "/jobs/new",
        f"/jobs/{job}/edit", "/runs", "/runs?state=failed", f"/runs/{run}", "/lateness", "/failures", "/timeline",
        "/timeline?minutes=1440", "/forecast", "/cluster",
    ):  # fmt: skip
        times, body, used = [], "", 0.0
        for number in range(ROUNDS):
            if number == 1:
                used = cpu(server)
            began = time.perf_counter()
            answer = client.get(path)
            times.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, (path, answer.text)
            body = answer.text
        spent = (cpu(server) - used) / (ROUNDS - 1)
        weight = len(body.encode()) + sum(
            len(client.get(each).content) for each in set(re.findall(r'(?:src|href)="(/static/[^"]+)"', body))
        )
        first, rest = times[0], times[1:]
        shown = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}(@[^/?]*)?", "…", path)
        sys.stdout.write(
            f"{shown:34}{first:9.1f}{statistics.median(rest):9.1f}{max(rest):9.1f}{spent:9.1f}{weight:10,}\n"
        )


if __name__ == "__main__":
    main()
