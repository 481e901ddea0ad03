"""How a command ends: its exit code, and what stderr says."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from duly.core.errors import DulyError

if TYPE_CHECKING:
    from duly.core.contract import RunView

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130

_CODES: Final = {400: USAGE, 404: NOT_FOUND, 409: CONFLICT, 412: CONFLICT, 422: USAGE, 504: TIMED_OUT}
_NEEDED: Final = re.compile(r"\bscope (submit|operate|admin|worker|read)\b")
_ADVICE: Final = {
    "unauthenticated": "give a token with --token or DULY_TOKEN; make one with: duly token create",
    "forbidden": "use a token with a wider scope; make one with: duly token create --scope operate",
    "blob_missing": "upload the file again: duly create does so, and so does a client's upload()",
    "invalid_schedule": "try schedules out, without a server: duly schedule preview EXPR",
    "idempotency_key_reused": "use another --key, or the same fields as the first time",
    "not_found": "see what there is: duly job list, duly run list",
    "precondition_failed": "it was changed meanwhile: look at it, then try again: duly job show",
    "too_large": "the server's max_blob_bytes and limits say how much it takes; see: duly config show, there",
    "overloaded": "wait a little, then try again",
    "outcome_unknown": "look before you repeat it: it may have been done; with --key a creation can be repeated",
    "unavailable": "see what is wrong: duly doctor",
    "fenced": "try again; another scheduler has just taken over",
    "wrong_shard": "try again; the job has just moved to another shard",
    "timed_out": "it goes on without you; see: duly run list, duly run explain RUN",
    "blob_corrupt": "restore the file from a backup of the blobs, or upload it again; then look at that disk",
    "error": "see what is wrong: duly doctor",
    "storage_full": "make room on the disk of the server's directory",
}


def guarded(command: Callable[[], object], *, as_json: bool = False) -> int:
    """Runs a command; duly's errors become one line on stderr and an exit code."""
    try:
        result = command()
        sys.stdout.flush()
    except DulyError as error:
        report(error, as_json=as_json)
        return _CODES.get(error.status, FAILED) if error.code != "idempotency_key_reused" else CONFLICT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def report(error: DulyError, *, as_json: bool = False) -> None:
    """Says on stderr what went wrong and what to do."""
    advice = advice_for(error)
    if as_json:
        fields = [{"pointer": field.pointer, "detail": field.detail} for field in error.errors]
        problem = {"code": error.code, "status": error.status, "detail": error.detail, "errors": fields}
        sys.stderr.write(json.dumps({**problem, "advice": advice}) + "\n")
        return
    lines = [f"duly: {error.detail}"]
    if len(error.errors) > 1 or (error.errors and error.errors[0].detail not in error.detail):
        if error.errors[0].detail in error.detail:  # it is the first of the list
            lines = ["duly: several fields are wrong" if len(error.errors) > 1 else lines[0]]
        lines += [f"  {field.pointer}: {field.detail}" for field in error.errors]
    elif error.errors and error.errors[0].pointer and error.errors[0].pointer not in error.detail:
        lines[0] = f"duly: {error.errors[0].pointer.lstrip('/')}: {error.detail}"
    if advice:
        lines.append(f"  {advice}")
    sys.stderr.write("\n".join(lines) + "\n")


def advice_for(error: DulyError) -> str | None:
    """What to do next, where that is known."""
    if error.code == "unavailable" and "no server answers" in error.detail:
        return "start one with: duly up   (or name another with --server or DULY_SERVER)"
    if "see:" in error.detail or "for example:" in error.detail:  # it says so itself
        return None
    if error.code == "unauthenticated" and "expired" in error.detail:
        return "make a new one on the server: duly token create; which have ended: duly token list"
    needed = _NEEDED.search(error.detail) if error.code == "forbidden" else None
    if needed is not None:
        return f"use a token with that scope; make one on the server with: duly token create --scope {needed.group(1)}"
    if error.code == "not_found" and "token" in error.detail:
        return "see what there is: duly token list"
    return _ADVICE.get(error.code)


def run_exit(run: RunView) -> int:
    """The exit code that mirrors a run: its own, 128 + n for a signal, 124 for its timeout, else 0 or 1."""
    if run.state == "succeeded":
        return 0
    if run.error is not None and run.error.kind == "timeout":
        return TIMED_OUT
    if run.exit_code is None or run.exit_code == 0:
        return FAILED
    return 128 - run.exit_code if run.exit_code < 0 else min(run.exit_code, 255)
