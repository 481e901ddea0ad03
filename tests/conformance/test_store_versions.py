"""The Store port, clause by clause: `versions`, and what `change` keeps for it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec.structs import replace

from conformance.harness import Harness
from conformance.samples import T0, dispatch, job, run
from duly.core.model import CommandTask, FunctionTask, Job, JobId, Keep
from duly.core.versions import KEPT_BYTES, KEPT_VERSIONS
from duly.ports import Collision, Store

A = JobId("a")


def digest(number: int) -> str:
    """Of some content."""
    return f"sha256:{number:064x}"


def coded(version: int, **fields: Any) -> Job:
    """Version `version` of the job a, whose code is that of the version."""
    return job("a", version=version, defined_in=version, task=CommandTask(code=digest(version)), **fields)


async def redefine(store: Store, *versions: Job) -> None:
    """Replace each by the one that follows it."""
    for was, becomes in itertools.pairwise(versions):
        assert await store.change(becomes, was.version, [], replaced=was) == becomes


async def all_orphans(store: Store) -> set[str]:
    """Prune until there is no more."""
    found: set[str] = set()
    while True:
        pruned = await store.prune(100)
        found |= set(pruned.orphans)
        if not pruned.more:
            return found


async def test_a_new_job_has_no_versions(harness: Harness) -> None:
    """Neither has one that does not exist."""
    await harness.store.create([(job("a"), [run("a")])])
    assert await harness.store.versions(A, None, 10) == []
    assert await harness.store.versions(JobId("nobody"), None, 10) == []


async def test_what_is_replaced_is_kept_as_it_was(harness: Harness) -> None:
    """Newest first, below a number, up to a limit; other jobs keep their own."""
    v1, v2, v4 = job("a", defined_in=1), job("a", version=2, defined_in=2, name="x"), job("a", version=4, defined_in=4)
    await harness.store.create([(v1, [run("a")]), (job("b"), [run("b")])])
    await redefine(harness.store, v1, v2)
    paused = replace(v2, version=3, state="paused")
    assert await harness.store.change(paused, 2, []) == paused
    await redefine(harness.store, paused, v4)
    await harness.store.change(job("b", version=2), 1, [], replaced=job("b", defined_in=1))
    assert await harness.store.versions(A, None, 10) == [paused, v1]
    assert await harness.store.versions(A, 2, 10) == [v1]
    assert await harness.store.versions(A, 1, 10) == []
    assert await harness.store.versions(A, None, 1) == [paused]
    assert await harness.store.versions(A, None, 0) == []


async def test_nothing_is_kept_by_a_change_that_loses(harness: Harness) -> None:
    """Another version, or a collision."""
    await harness.store.create([(job("a"), [run("a")])])
    await harness.store.apply([dispatch(run("a"))])
    was = job("a", defined_in=1)
    assert await harness.store.change(job("a", version=9), 8, [], replaced=was) is None
    assert await harness.store.change(job("a", version=2), 1, [run("a")], replaced=was) == Collision(T0)
    assert await harness.store.versions(A, None, 10) == []


async def test_the_last_fifty_are_kept(harness: Harness) -> None:
    """And their files with them: what the oldest alone referred to is nobody's then."""
    versions = [coded(number) for number in range(1, KEPT_VERSIONS + 4)]
    await harness.store.create([(versions[0], [])])
    await redefine(harness.store, *versions)
    kept = await harness.store.versions(A, None, 1_000)
    assert kept == versions[-2:1:-1]
    assert len(kept) == KEPT_VERSIONS
    assert await harness.store.referred([digest(number) for number in range(1, KEPT_VERSIONS + 4)]) == {
        digest(number) for number in range(3, KEPT_VERSIONS + 4)
    }
    assert await all_orphans(harness.store) >= {digest(1), digest(2)}


async def test_large_definitions_are_kept_up_to_a_size(harness: Harness) -> None:
    """Fewer than fifty then; the newest, however large it is."""
    share = KEPT_BYTES // 3
    versions = [
        job("a", version=number, defined_in=number, task=FunctionTask(name="x" * (share if number < 6 else KEPT_BYTES)))
        for number in range(1, 8)
    ]
    await harness.store.create([(versions[0], [])])
    await redefine(harness.store, *versions[:5])
    assert [each.version for each in await harness.store.versions(A, None, 10)] == [4, 3]
    await redefine(harness.store, *versions[4:])
    assert [each.version for each in await harness.store.versions(A, None, 10)] == [6]


async def test_versions_go_with_the_job(harness: Harness) -> None:
    """Not when it is deleted, as its history: when nothing is left of it. Their files are nobody's then."""
    versions = [coded(number, keep=Keep(runs=0)) for number in range(1, 4)]
    await harness.store.create([(versions[0], [])])
    await redefine(harness.store, *versions)
    deleted = replace(versions[-1], version=4, state="deleted")
    assert await harness.store.change(deleted, 3, []) == deleted
    assert [each.version for each in await harness.store.versions(A, None, 10)] == [2, 1]
    assert await all_orphans(harness.store) == {digest(1), digest(2), digest(3)}
    assert await harness.store.get([A]) == [None]
    assert await harness.store.versions(A, None, 10) == []


@pytest.mark.parametrize("text", ["", "\x7f'; drop table job; --", "ü\u2028\U0001f680" * 50])
async def test_any_text_is_kept(harness: Harness, text: str) -> None:
    """As it was written."""
    was = job("a", defined_in=1, defined_by="0123456789ab", defined_at=T0, name=text)
    await harness.store.create([(was, [])])
    await redefine(harness.store, was, job("a", version=2))
    assert await harness.store.versions(A, None, 10) == [was]
