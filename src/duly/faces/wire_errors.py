"""Errors back from the wire: problem+json → the classes of duly.core.errors, by code."""

from __future__ import annotations

from typing import Final

import msgspec

from duly.core import errors
from duly.core.contract import Problem
from duly.core.errors import DulyError, FieldError, OutcomeUnknown, TimedOut, Unavailable


def _classes(root: type[DulyError]) -> dict[str, type[DulyError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            found |= _classes(kind)
    return found


_BY_CODE: Final = _classes(DulyError)
_BY_STATUS: Final[dict[int, type[DulyError]]] = {
    400: errors.Malformed,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    412: errors.PreconditionFailed,
    413: errors.TooLarge,
    422: errors.InvalidInput,
    429: errors.Overloaded,
    502: OutcomeUnknown,  # a proxy lost the servicer while it was at work
    503: Unavailable,
    504: TimedOut,
    507: errors.StorageFull,
}


def problem_error(status: int, content: bytes, retry_after: str | None) -> DulyError:
    """The error that a problem+json body stands for; for other bodies, as of a proxy, the one of the status."""
    seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _BY_STATUS.get(status, DulyError)(f"answered with status {status}", retry_after=seconds)
    return as_error(problem, seconds)


def as_error(problem: Problem, retry_after: float | None = None) -> DulyError:
    """An error of the class that has the problem's code, else of the class of its status."""
    detail = problem.detail
    fields = tuple(FieldError(entry.pointer, entry.detail) for entry in problem.errors)
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(problem.status, DulyError)
    if issubclass(kind, errors.ScheduleError):  # made from a reason and a position, which the detail already tells
        error: DulyError = kind(detail)
        error.detail, error.errors, error.args = detail, fields, (detail,)
        return error
    return kind(detail, errors=fields, retry_after=retry_after)
