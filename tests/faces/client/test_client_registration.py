"""The jobs of decorated functions: one each, however often the program starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.core.definition import merge
from duly.core.errors import InvalidInput
from duly.faces.client import Client
from duly.faces.registration import difference


def sweep() -> None:
    """A function at the top of a module."""


def digest() -> None:
    """Another."""


def index() -> None:
    """A third."""


def test_starting_twice_makes_one_job(server: str) -> None:
    """The key of the job is its function's name; the second start finds it, in this program or another."""
    jobs = []
    for _ in range(2):
        with Client.connect(server) as client:
            client.job("0 2 * * *", timezone="Europe/Berlin", timeout="90m")(sweep)
            jobs.append(client.register())
    assert len(jobs[0]) == 1
    assert jobs[0][0].id == jobs[1][0].id
    assert jobs[1][0].version == 1
    assert (jobs[1][0].name, jobs[1][0].timeout) == ("sweep", "1h30m")


def test_a_changed_decorator_changes_the_job(server: str) -> None:
    """Options that differ are updated, those that are gone go back to their defaults; then nothing more happens."""
    versions: list[tuple[str, int, str, dict[str, str]]] = []
    for options in ({"priority": 9, "labels": {"a": "b", "c": "d"}}, {"labels": {"a": "x"}}, {"labels": {"a": "x"}}):
        with Client.connect(server) as client:
            client.job("@daily", **options)(digest)
            job = client.register()[0]
            versions.append((job.id, job.version, str(job.priority), job.labels))
    ids, numbers, priorities, labels = zip(*versions, strict=True)
    assert len(set(ids)) == 1
    assert numbers == (1, 2, 2)
    assert priorities == ("9", "5", "5")
    assert labels == ({"a": "b", "c": "d"}, {"a": "x"}, {"a": "x"})


def test_who_paused_or_deleted_a_job_is_heard(server: str) -> None:
    """A paused job stays paused over a start; a deleted one is made anew, once."""
    with Client.connect(server) as client:
        client.job("@hourly")(index)
        first = client.register()[0]
        client.pause(first.id)
        assert client.register()[0].state == "paused"
        client.delete(first.id)
        second = client.register()[0]
        assert second.id != first.id
        assert second.state == "active"
        assert client.register()[0].id == second.id


def test_a_function_without_schedule_has_no_job(server: str) -> None:
    """It is only submitted."""
    with Client.connect(server) as client:
        client.job(retry=2)(sweep)
        assert client.register() == []


def test_bad_decorators_are_refused_where_they_stand() -> None:
    """Not at the start of the program, and without a server."""
    client = Client.connect("http://127.0.0.1:1")
    with pytest.raises(InvalidInput, match="61 is not a minute"):
        client.job("61 * * * *")(sweep)
    with pytest.raises(InvalidInput, match="priority"):
        client.job("@daily", priority=10)(sweep)
    with pytest.raises(InvalidInput, match="top of a module"):
        client.job("@daily")(lambda: None)
    with pytest.raises(TypeError, match="'tz'"):
        client.job("@daily", tz="UTC")(sweep)  # type: ignore[call-arg]  # that is the test


values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(max_size=2), values, max_size=4)


@given(documents, documents)
def test_a_difference_is_a_patch(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Merging it makes the one of the other, and equal documents differ by nothing."""
    assert merge(before, difference(before, after)) == after
    assert difference(before, before) == {}
