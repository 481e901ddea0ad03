"""Versions of a job's definition: what counts as one, what is kept of it, and how two of them differ.

A job's version rises with every change. Those in which its definition changed name the versions of the definition:

    version      1         2         3       4         5
    change       created   paused    PATCH   resumed   PATCH        pause, resume and delete change no definition
    definition   1 ────────────────▶ 3 ──────────────▶ 5            at version 2, definition 1 was in force

What is replaced is kept by the store, in the commit that replaces it; so a job that never changes costs nothing
(decision 0033).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from duly.core.contract import JobDefinition, JobVersionView
from duly.core.instants import format_instant
from duly.core.model import Job
from duly.core.views import job_definition

KEPT_VERSIONS: Final = 50  # replaced definitions of one job; the oldest go first
KEPT_BYTES: Final = 1 << 20  # of all of them as stored; the newest is kept whatever its size
CONTEXT: Final = 3  # lines that stay, shown around what differs
MATCHED: Final = 90_000  # pairs of lines looked at for the smallest difference; beyond, it is one block

_DEEP: Final = ("task", "retry", "keep")  # fields whose own fields are told apart


class DiffLine(NamedTuple):
    """A line of a difference. `sign`: + added, - removed, a space for one that stays, @ for where a hunk begins."""

    sign: str
    text: str


# -- what is a version ----------------------------------------------------------------------------------------


def number(job: Job) -> int:
    """The version in which the job's definition became what it is.

    Of a job that was changed before definitions were told apart this is the present version, until the next change.
    """
    return job.defined_in or job.version


def follow(before: Job, job: Job, by: str) -> tuple[Job, Job | None]:
    """The changed job with its definition's version, instant and author; and what is to be kept of `before`, if any."""
    was = replace(before, defined_in=number(before), defined_at=before.defined_at or before.updated_at)
    if text(job_definition(job)) == text(job_definition(before)):
        return replace(job, defined_in=was.defined_in, defined_at=was.defined_at, defined_by=was.defined_by), None
    return replace(job, defined_in=job.version, defined_at=job.updated_at, defined_by=by), was


def version_view(job: Job, *, before: Job | None, current: bool) -> JobVersionView:
    """A definition as clients read it. `before` is the one that it replaced, None if that is not known."""
    definition = job_definition(job)
    return JobVersionView(
        version=number(job),
        at=format_instant(job.defined_at or job.updated_at),
        by=job.defined_by or None,
        current=current,
        changed=None if before is None else changed(job_definition(before), definition),
        definition=definition,
    )


# -- how they differ ------------------------------------------------------------------------------------------


def text(definition: JobDefinition) -> str:
    """The definition as JSON, one value a line, names sorted: the same for the same definition, wherever it is made."""
    return msgspec.json.format(msgspec.json.encode(definition, order="sorted"), indent=2).decode()


def changed(older: JobDefinition, newer: JobDefinition) -> list[str]:
    """The names of the fields that differ, sorted: `schedule`, `task.argv`, `retry.base`."""
    was, now = _fields(older), _fields(newer)
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))


def _fields(definition: JobDefinition) -> dict[str, bytes]:
    """Each field as JSON, because 1, 1.0 and true are three values."""
    found: dict[str, bytes] = {}
    plain: dict[str, Any] = msgspec.to_builtins(definition)
    for name, value in plain.items():
        within = {f"{name}.{deep}": each for deep, each in value.items()} if name in _DEEP else {name: value}
        found |= {path: msgspec.json.encode(each, order="sorted") for path, each in within.items()}
    return found


def diff(older: JobDefinition, newer: JobDefinition) -> list[DiffLine]:
    """What differs, as a unified diff of their texts without its first two lines; empty if nothing does."""
    old, new = text(older).splitlines(), text(newer).splitlines()
    lines: list[DiffLine] = []
    for group in _matcher(old, new).get_grouped_opcodes(CONTEXT):
        first, last = group[0], group[-1]
        lines.append(DiffLine("@", f"@@ -{_span(first[1], last[2])} +{_span(first[3], last[4])} @@"))
        for tag, from_old, to_old, from_new, to_new in group:
            if tag == "equal":
                lines += [DiffLine(" ", line) for line in old[from_old:to_old]]
            else:
                lines += [DiffLine("-", line) for line in old[from_old:to_old]]
                lines += [DiffLine("+", line) for line in new[from_new:to_new]]
    return lines


def _span(start: int, end: int) -> str:
    """Lines as a unified diff counts them: from 1, an empty stretch by the line before it."""
    return str(end) if end - start == 1 else f"{start + (end > start)},{end - start}"


class _Coarse(difflib.SequenceMatcher[str]):
    """Sequences that are alike at both ends, and taken for wholly different in between."""

    def __init__(self, old: Sequence[str], new: Sequence[str], head: int, tail: int) -> None:
        super().__init__(None, old, new)
        self._sizes = (len(old), len(new), head, tail)

    def get_matching_blocks(self) -> list[difflib.Match]:
        """Two, and the empty one that ends them."""
        old, new, head, tail = self._sizes
        return [difflib.Match(0, 0, head), difflib.Match(old - tail, new - tail, tail), difflib.Match(old, new, 0)]


def _matcher(old: Sequence[str], new: Sequence[str]) -> difflib.SequenceMatcher[str]:
    """Finds what is alike. Looking for the smallest difference takes time by the product of the lengths."""
    least = min(len(old), len(new))
    head = next((i for i in range(least) if old[i] != new[i]), least)
    tail = next((i for i in range(least - head) if old[-1 - i] != new[-1 - i]), least - head)
    if (len(old) - head - tail) * (len(new) - head - tail) <= MATCHED:
        return difflib.SequenceMatcher(None, old, new, autojunk=False)
    return _Coarse(old, new, head, tail)
