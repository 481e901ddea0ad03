"""The filter language of the job list: words and `key:value`, as in `team=ops is:paused name:nightly report`.

is:active|paused|completed|deleted    task:function|command|http    name:<whole>    schedule:"<whole>"
<label>=<value>                       anything else: a part of the name or the id
"""

from __future__ import annotations

import shlex
from typing import Any, Final

from duly.core.errors import InvalidInput
from duly.ports import JobQuery

STATES: Final = ("active", "paused", "completed", "deleted")
TASKS: Final = ("function", "command", "http")
WORDS: Final = (*(f"is:{state}" for state in STATES), *(f"task:{task}" for task in TASKS), "name:", "schedule:")
LONGEST: Final = 1_000


def parse_filter(text: str) -> dict[str, Any]:
    """The fields of a JobQuery that a filter asks for. Raises InvalidInput with what was not understood."""
    if len(text) > LONGEST:
        raise InvalidInput.at("/query/q", f"a filter has at most {LONGEST} characters")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInput.at("/query/q", f"a quote is not closed: {error}") from None
    found: dict[str, Any] = {}
    labels: list[tuple[str, str]] = []
    free: list[str] = []
    for word in words:
        key, colon, value = word.partition(":")
        if colon and key in ("is", "state"):
            found["state"] = _one_of(value, STATES, word)
        elif colon and key == "task":
            found["task"] = _one_of(value, TASKS, word)
        elif colon and key in ("name", "schedule") and value:
            found[key] = value
        elif "=" in word and not word.startswith("="):
            label, _, content = word.partition("=")
            labels.append((label, content))
        else:
            free.append(word)
    if labels:
        found["labels"] = tuple(labels)
    if free:
        found["q"] = " ".join(free)
    return found


def job_query(text: str, **others: Any) -> JobQuery:
    """The query of a filter."""
    return JobQuery(**(parse_filter(text) | others))


def bulk_filter(text: str) -> dict[str, Any]:
    """The same as the filter of a bulk action; empty when nothing was asked for."""
    found = parse_filter(text)
    labels = found.pop("labels", ())
    if labels:
        found["label"] = [f"{key}:{value}" for key, value in labels]
    return found


def _one_of(value: str, choices: tuple[str, ...], word: str) -> str:
    if value not in choices:
        raise InvalidInput.at("/query/q", f"{word[:60]!r}: one of {', '.join(choices)}")
    return value
