"""The commands of docs/operations.md, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.running import RunningCluster, running_cluster
from duly import Duly
from duly.cluster.postgres_server import programs
from duly.core.errors import Unavailable
from duly.settings import load
from system.served import Served, until

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ROLES = ("worker-0", "scheduler-0", "servicer-0")
SMALL = ("--shards", "2", "--servicers", "1", "--schedulers", "1", "--workers", "1", "--slots", "2")


def block(name: str) -> str:
    """The block that begins with `# tried: <name>`."""
    found = re.findall(rf"```sh\n# tried: {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 1, name
    return str(found[0])


def carry_out(name: str, **variables: str | Path) -> str:
    """Run the block in a shell that stops at the first failure; what it printed."""
    path = f"{Path(sys.executable).parent}:{programs()}:{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DULY_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block(name)],
        env={**clean, "PATH": path, **{key: str(value) for key, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def variables(cluster: RunningCluster, backup: Path) -> dict[str, str | Path]:
    """What the page's blocks take from their surroundings."""
    settings = load(path=cluster.directory / "duly.toml", environ={}).settings
    stores = {name.upper(): url for name, url in settings.stores.items()}
    return {**stores, "BLOBS": settings.blobs, "BACKUP": backup, "DULY_CONFIG": cluster.directory / "duly.toml"}


@pytest.mark.timeout(180)
def test_a_cluster_is_backed_up_and_restored_elsewhere(tmp_path: Path) -> None:
    """Jobs of every shard, their history and files; and recurring jobs go on there."""
    backup = tmp_path / "backup"
    (backup / "blobs").mkdir(parents=True)
    with running_cluster(tmp_path / "first", *SMALL) as cluster, Duly(cluster.url) as duly:
        jobs = [duly.create(argv=["/bin/sh", "-c", "echo kept > output/file"], schedule="now") for _ in range(8)]
        ticking = duly.create(argv=["/bin/true"], schedule="every 1s", name="ticking")
        for job in jobs:
            until(lambda job=job: done(duly, job.id), what="a run")
        carry_out("backup", **variables(cluster, backup))
        assert all(shard.jobs for shard in duly.shards()), "a shard without a job proves nothing"
    with running_cluster(tmp_path / "second", *SMALL) as cluster:
        for role in ROLES:
            cluster.ask("stop", role)
        carry_out("restore", **variables(cluster, backup))
        for role in reversed(ROLES):
            cluster.ask("start", role)
        with Duly(cluster.url) as duly:
            assert {job.id for job in duly.jobs().items} == {job.id for job in [*jobs, ticking]}
            for job in jobs:
                [run] = duly.runs(job_id=job.id).items
                assert duly.output(run.id, "file") == b"kept\n"
            before = len(duly.runs(job_id=ticking.id, state="succeeded", limit=1000).items)
            until(
                lambda: len(duly.runs(job_id=ticking.id, state="succeeded", limit=1000).items) > before, what="a tick"
            )


@pytest.mark.timeout(120)
def test_one_machine_is_backed_up_while_it_runs(tmp_path: Path) -> None:
    """And the copy is a duly of its own."""
    backup = tmp_path / "backup"
    (backup / "blobs").mkdir(parents=True)
    served = Served(tmp_path / "data")
    try:
        with served.start() as duly:
            job = duly.create(argv=["/bin/sh", "-c", "echo kept > output/file"], schedule="now")
            until(lambda: done(duly, job.id), what="a run")
            carry_out("backup of one machine", DIR=tmp_path / "data", BACKUP=backup)
    finally:
        served.kill()
    copy = Served(backup)
    try:
        with copy.start() as duly:
            [run] = duly.runs(job_id=job.id).items
            assert duly.output(run.id, "file") == b"kept\n"
    finally:
        copy.kill()


@pytest.mark.timeout(180)
def test_a_shard_is_led_from_its_standby(tmp_path: Path) -> None:
    """As the page tells to, under the roles; what was there is there, and work goes on."""
    with running_cluster(tmp_path / "cluster", *SMALL, "--standbys", "1") as cluster, Duly(cluster.url) as duly:
        jobs = [duly.create(argv=["/bin/true"], schedule="now") for _ in range(8)]
        for job in jobs:
            until(lambda job=job: done(duly, job.id), what="a run")
        until(lambda: all(shard["standby"] == "in step" for shard in cluster.shards()), what="standbys in step")
        printed = carry_out("promote", DIR=cluster.directory)
        assert "s0: led by s0b" in printed
        until(lambda: answers(duly), what="the shard from its new leader")
        more = [duly.create(argv=["/bin/true"], schedule="now") for _ in range(8)]
        for job in more:
            until(lambda job=job: done(duly, job.id), what="a run after the hand-over")
        assert {job.id for job in duly.jobs().items} == {job.id for job in [*jobs, *more]}


def answers(duly: Duly) -> bool:
    """Every shard does."""
    try:
        return all(shard.state == "up" for shard in duly.shards())
    except Unavailable:
        return False


def done(duly: Duly, job_id: str) -> bool:
    """The job has a run that succeeded."""
    run = duly.get(job_id).last_run
    return run is not None and run.state == "succeeded"
