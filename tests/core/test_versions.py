"""Versions of a definition: what counts as one, and how two of them differ."""

from __future__ import annotations

import difflib
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from duly.core import versions
from duly.core.contract import CommandSpec, FunctionSpec, JobDefinition, JobSpec, RetrySpec
from duly.core.definition import define_job, patch_job
from duly.core.model import Job, JobId

NOW = 1_800_000_000_000_000


def defined(**fields: Any) -> JobDefinition:
    """A definition."""
    return JobDefinition(**({"task": CommandSpec(argv=["a", "b"]), "schedule": "@daily"} | fields))


def first() -> Job:
    """A new job, made with a token."""
    spec = JobSpec(task=FunctionSpec(name="app:work"), schedule="@daily")
    return define_job(spec, job_id=JobId("a"), now=NOW, by="0123456789ab")


def patched(job: Job, later: int, **patch: Any) -> Job:
    """Its next version."""
    return patch_job(job, patch, now=NOW + later)


def test_a_new_job_is_its_own_first_version() -> None:
    """By whoever made it, when it was made; nothing is noted in it."""
    job = first()
    view = versions.version_view(job, before=None, current=True)
    assert (view.version, view.at, view.by, view.changed) == (1, "2027-01-15T08:00:00.000000Z", "0123456789ab", None)
    assert (job.defined_in, job.defined_at) == (0, 0)


def test_a_definition_is_named_by_the_version_that_brought_it() -> None:
    """Pausing moves the version, and not that of the definition."""
    one = first()
    paused, kept = versions.follow(one, replace(one, state="paused", version=2, updated_at=NOW + 1), "someone")
    assert kept is None
    assert (versions.number(paused), paused.defined_at, paused.defined_by) == (1, NOW, "0123456789ab")
    three, kept = versions.follow(paused, patched(paused, 2, priority=9), "someone")
    assert kept == paused
    assert (versions.number(three), three.defined_at, three.defined_by) == (3, NOW + 2, "someone")
    assert versions.version_view(three, before=kept, current=True).changed == ["priority"]
    same, kept = versions.follow(three, patched(three, 3, priority=9, paused=False), "another")
    assert kept is None
    assert (same.version, versions.number(same), same.defined_by) == (4, 3, "someone")


def test_a_job_of_before_has_its_present_version() -> None:
    """When its definition came is not known; from its next change on its number stands."""
    old = replace(first(), version=7, updated_at=NOW + 5, defined_by="")
    assert versions.number(old) == 7
    paused, _ = versions.follow(old, replace(old, state="paused", version=8, updated_at=NOW + 9), "")
    assert (versions.number(paused), paused.defined_at) == (7, NOW + 5)
    nine, kept = versions.follow(paused, patched(paused, 10, name="x"), "")
    assert kept is not None
    assert (versions.number(kept), versions.number(nine)) == (7, 9)


def test_values_that_python_takes_for_equal_are_told_apart() -> None:
    """1, 1.0 and true are three arguments."""
    forms = [defined(task=FunctionSpec(name="a:b", args=[value])) for value in (1, 1.0, True)]
    for older, newer in itertools.permutations(forms, 2):
        assert versions.changed(older, newer) == ["task.args"]
        assert versions.text(older) != versions.text(newer)


def test_changed_fields_are_named() -> None:
    """Sorted, those of task, retry and keep one by one; another kind of task has other fields."""
    older = defined(labels={"a": "1"})
    newer = defined(task=CommandSpec(argv=["a", "c"]), labels={"a": "2"}, retry=RetrySpec(base="2s"), name="x")
    assert versions.changed(older, newer) == ["labels", "name", "retry.base", "task.argv"]
    assert versions.changed(older, older) == []
    assert "task.kind" in versions.changed(older, defined(task=FunctionSpec(name="a:b")))


def test_the_text_does_not_depend_on_the_order_of_names() -> None:
    """Labels may come in any."""
    assert versions.text(defined(labels={"a": "1", "b": "2"})) == versions.text(defined(labels={"b": "2", "a": "1"}))


def unified(older: JobDefinition, newer: JobDefinition) -> list[str]:
    """What difflib makes of the two."""
    old, new = versions.text(older).splitlines(), versions.text(newer).splitlines()
    return list(difflib.unified_diff(old, new, lineterm="", n=versions.CONTEXT))[2:]


ARGUMENTS = st.lists(st.sampled_from(["a", "b", "\u2028", "<b>", '"', "-", "+"]), max_size=30)


@given(ARGUMENTS, ARGUMENTS)
def test_a_difference_is_a_unified_diff(was: list[str], now: list[str]) -> None:
    """Line for line."""
    older, newer = defined(task=CommandSpec(argv=was)), defined(task=CommandSpec(argv=now))
    lines = [text if sign == "@" else sign + text for sign, text in versions.diff(older, newer)]
    assert lines == unified(older, newer)


def applied(older: JobDefinition, newer: JobDefinition) -> list[str]:
    """The removed lines and those that stay, in order: the old text, where the whole of it is shown."""
    return [text for sign, text in versions.diff(older, newer) if sign in " -"]


def test_what_would_take_long_to_compare_is_one_block() -> None:
    """Thousands of lines that are alike in many ways: all of them go, all of them come."""
    count = 3_000
    older = defined(task=FunctionSpec(name="a:b", args=[[i % 7 for i in range(count)]]))
    newer = defined(task=FunctionSpec(name="a:b", args=[[i * 3 % 7 for i in range(count)]]))
    lines = versions.diff(older, newer)
    signs = "".join(sign for sign, _ in lines)
    assert signs.strip("@ ").strip("+-") == ""
    assert count - 10 < signs.count("-") == signs.count("+") <= count
    assert set(applied(older, newer)) <= set(versions.text(older).splitlines())
    assert lines[0].text.startswith("@@ -")
