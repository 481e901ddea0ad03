"""The form of a job ↔ its JSON: fields are named after their pointers (`retry.base` is `/retry/base`)."""

from __future__ import annotations

import shlex
from typing import Any, Final

import msgspec

from duly.core.contract import CommandSpec, FunctionSpec, JobSpec, JobView
from duly.core.errors import FieldError, InvalidInput
from duly.faces.pages.visit import Form

PLAIN: Final = ("name", "schedule", "timezone", "dst", "jitter", "max_lateness", "timeout", "misfire", "catchup_window",
                "overlap", "delivery")  # fmt: skip
OPTIONAL: Final = ("start", "end")
MAPPINGS: Final = ("labels", "requires")


def to_fields(job: JobSpec | JobView) -> dict[str, str]:
    """What the form shows of a job."""
    plain: dict[str, Any] = msgspec.to_builtins(job)
    fields = {name: str(plain[name]) for name in PLAIN}
    fields |= {name: plain[name] or "" for name in OPTIONAL}
    fields |= {name: _lines(plain[name]) for name in MAPPINGS}
    fields |= {f"retry.{name}": str(value) for name, value in plain["retry"].items()}
    fields |= {f"keep.{name}": str(value) for name, value in plain["keep"].items()}
    fields["priority"] = str(plain["priority"])
    fields["max_runs"] = "" if plain["max_runs"] is None else str(plain["max_runs"])
    fields["calendar"] = " ".join(plain["calendar"])
    fields["paused"] = "1" if plain["paused"] else ""
    task = job.task
    fields["kind"] = plain["task"]["kind"]
    if isinstance(task, CommandSpec):
        fields |= {
            "task.argv": shlex.join(task.argv),
            "task.env": _lines(task.env),
            "task.stdin": task.stdin or "",
            "task.code": task.code or "",
            "task.inputs": "\n".join(f"{path}={digest}" for path, digest in task.inputs.items()),
            "task.isolation": task.isolation,
        }
    elif isinstance(task, FunctionSpec):
        fields |= {
            "task.name": task.name,
            "task.args": msgspec.json.encode(task.args).decode(),
            "task.kwargs": msgspec.json.encode(task.kwargs).decode(),
        }
    else:
        fields |= {
            "task.url": task.url,
            "task.method": task.method,
            "task.headers": _lines(task.headers),
            "task.body": "" if task.body is None else msgspec.json.encode(task.body).decode(),
            "task.expect": task.expect,
        }
    return fields


def from_form(form: Form, before: JobView | None) -> dict[str, Any]:
    """The JSON of the job that a form describes, its files filled in. Raises InvalidInput with pointers.

    What the form does not show of the job that it changes stays as it is.
    """
    wrong: list[FieldError] = []
    job: dict[str, Any] = {name: form.text(name).strip() for name in PLAIN if name in form}
    job |= {name: form.text(name).strip() or None for name in OPTIONAL if name in form}
    job |= {name: _mapping(form.text(name), f"/{name}", wrong) for name in MAPPINGS if name in form}
    job["priority"] = _whole(form.text("priority", "5"), "/priority", wrong)
    job["max_runs"] = _whole(form.text("max_runs"), "/max_runs", wrong) if form.text("max_runs").strip() else None
    job["calendar"] = form.text("calendar").replace(",", " ").split()
    job["paused"] = form.text("paused") == "1"
    job["retry"] = {
        "max_attempts": _whole(form.text("retry.max_attempts", "3"), "/retry/max_attempts", wrong),
        **{name: form.text(f"retry.{name}").strip() for name in ("backoff", "base", "cap") if f"retry.{name}" in form},
    }
    job["keep"] = {
        "runs": _whole(form.text("keep.runs", "1000"), "/keep/runs", wrong),
        "for": form.text("keep.for", "30d"),
    }
    job["task"] = _task(form, before, wrong)
    if wrong:
        raise InvalidInput(wrong[0].detail, errors=tuple(wrong))
    return job


def _task(form: Form, before: JobView | None, wrong: list[FieldError]) -> dict[str, Any]:
    kind = form.text("kind", "command")
    kept: dict[str, Any] = {}
    if before is not None:
        was: dict[str, Any] = msgspec.to_builtins(before.task)
        kept = was if was["kind"] == kind else {}
    if kind == "function":
        return {
            **kept,
            "kind": "function",
            "name": form.text("task.name").strip(),
            "args": _json(form.text("task.args"), [], "/task/args", wrong),
            "kwargs": _json(form.text("task.kwargs"), {}, "/task/kwargs", wrong),
        }
    if kind == "http":
        return {
            **kept,
            "kind": "http",
            "url": form.text("task.url").strip(),
            "method": form.text("task.method", "POST").strip(),
            "headers": _mapping(form.text("task.headers"), "/task/headers", wrong),
            "body": _json(form.text("task.body"), None, "/task/body", wrong),
            "expect": form.text("task.expect", "2xx").strip(),
        }
    uploaded = form.files.get("code", [])
    code = uploaded[-1][1].digest if uploaded else form.text("task.code").strip() or None
    inputs = _mapping(form.text("task.inputs"), "/task/inputs", wrong)
    inputs |= {name: blob.digest for name, blob in form.files.get("inputs", [])}
    try:
        argv = shlex.split(form.text("task.argv"))
    except ValueError as error:
        wrong.append(FieldError("/task/argv", f"a quote is not closed: {error}"))
        argv = []
    return {
        **kept,
        "kind": "command",
        "code": code,
        "argv": argv or (["./task"] if code else []),
        "env": _mapping(form.text("task.env"), "/task/env", wrong),
        "inputs": inputs,
        "stdin": form.text("task.stdin") or None,
    }


def merge_patch(before: Any, after: Any) -> dict[str, Any]:
    """The JSON merge patch that makes one of the other: only what differs, null for what goes."""
    patch: dict[str, Any] = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old == new and (name in before) == (name in after):
            continue
        if name not in after:
            patch[name] = None
        elif isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
            patch[name] = merge_patch(old, new)
        elif isinstance(old, dict) and isinstance(new, dict):
            patch[name] = {**dict.fromkeys(old), **new}  # a task of another kind replaces the whole
        else:
            patch[name] = new
    return patch


def _lines(mapping: dict[str, str]) -> str:
    return "\n".join(f"{name}={value}" for name, value in mapping.items())


def _mapping(text: str, pointer: str, wrong: list[FieldError]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        if not equals:
            wrong.append(FieldError(pointer, f"one name=value a line; {line[:60]!r} has no ="))
        found[name.strip()] = value
    return found


def _whole(text: str, pointer: str, wrong: list[FieldError]) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        wrong.append(FieldError(pointer, f"a whole number, not {text[:40]!r}"))
        return 0
    return int(text)


def _json(text: str, empty: Any, pointer: str, wrong: list[FieldError]) -> Any:
    if not text.strip():
        return empty
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        wrong.append(FieldError(pointer, f"not valid JSON: {error}"))
        return empty
