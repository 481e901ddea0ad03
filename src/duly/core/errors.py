"""Every error that duly raises on purpose, with the stable code and HTTP status that clients see.

DulyError
├── InvalidInput        422 invalid_input       one or more fields are wrong; each with its pointer
│   ├── ScheduleError   422 invalid_schedule    a schedule, with position, reason and an example
│   ├── IdempotencyKeyReused 422 idempotency_key_reused
│   └── CodeMissing     422 blob_missing        a digest that the blob store does not hold
├── Malformed           400 malformed           not JSON, a bad header, a bad cursor
├── Unauthenticated     401 unauthenticated
├── Forbidden           403 forbidden           the token lacks a scope or the namespace
├── NotFound            404 not_found
├── Conflict            409 conflict            the thing is in a state that forbids this
├── PreconditionFailed  412 precondition_failed If-Match names an older version
├── TooLarge            413 too_large
├── Overloaded          429 overloaded          a queue is full; try again after `retry_after` seconds
├── Unavailable         503 unavailable         a shard, store or broker does not answer; `retry_after`
│   ├── Fenced          503 fenced              another scheduler holds the term
│   ├── WrongShard      503 wrong_shard         the slot map in force gives the job's slot to another shard
│   └── OutcomeUnknown  503 outcome_unknown     a commit may or may not have happened: read, then repeat
├── StorageFull         507 storage_full
├── BlobCorrupt         500 blob_corrupt        stored bytes do not match their digest
└── TimedOut            504 timed_out           waited as long as asked
"""

from __future__ import annotations

from typing import ClassVar


class FieldError:
    """What is wrong with one field: `pointer` is an RFC 6901 JSON pointer, `detail` what would be right."""

    __slots__ = ("detail", "pointer")

    def __init__(self, pointer: str, detail: str) -> None:
        self.pointer = pointer
        self.detail = detail

    def __repr__(self) -> str:
        return f"FieldError({self.pointer!r}, {self.detail!r})"


class DulyError(Exception):
    """An error of duly's own. Its docstring is the default message."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str = "", *, errors: tuple[FieldError, ...] = (), retry_after: float | None = None
    ) -> None:
        self.detail = detail or (self.__doc__ or "").strip().splitlines()[0]
        self.errors = errors
        self.retry_after = retry_after
        super().__init__(self.detail)

    def __str__(self) -> str:
        if not self.errors:
            return self.detail
        fields = "; ".join(f"{error.pointer}: {error.detail}" for error in self.errors)
        return f"{self.detail} ({fields})"


class InvalidInput(DulyError):
    """A field has a value that duly cannot take."""

    code, status, title = "invalid_input", 422, "Invalid input"

    @classmethod
    def at(cls, pointer: str, detail: str) -> InvalidInput:
        """The error for a single field."""
        return cls(detail, errors=(FieldError(pointer, detail),))


class ScheduleError(InvalidInput):
    """The schedule is not one that duly understands."""

    code, title = "invalid_schedule", "Invalid schedule"

    def __init__(self, reason: str, *, position: int = 0, example: str = "", pointer: str = "/schedule") -> None:
        self.reason = reason
        self.position = position
        self.example = example
        self.pointer = pointer
        detail = f"{reason} (at character {position + 1})"
        if example:
            detail += f"; for example: {example}"
        super().__init__(detail, errors=(FieldError(pointer, detail),))


class IdempotencyKeyReused(InvalidInput):
    """This Idempotency-Key was used before with another body."""

    code, title = "idempotency_key_reused", "Idempotency key reused"


class CodeMissing(InvalidInput):
    """The blob store does not hold this digest; upload it first (POST /v1/blobs)."""

    code, title = "blob_missing", "Blob missing"


class Malformed(DulyError):
    """The request cannot be read."""

    code, status, title = "malformed", 400, "Malformed request"


class Unauthenticated(DulyError):
    """A valid token is needed: send it as `Authorization: Bearer …`."""

    code, status, title = "unauthenticated", 401, "Unauthenticated"


class Forbidden(DulyError):
    """The token does not allow this."""

    code, status, title = "forbidden", 403, "Forbidden"


class NotFound(DulyError):
    """There is no such thing here."""

    code, status, title = "not_found", 404, "Not found"


class Conflict(DulyError):
    """The state that it is in does not allow this."""

    code, status, title = "conflict", 409, "Conflict"


class PreconditionFailed(DulyError):
    """It was changed since you read it: read it again and repeat."""

    code, status, title = "precondition_failed", 412, "Precondition failed"


class TooLarge(DulyError):
    """Larger than allowed."""

    code, status, title = "too_large", 413, "Too large"


class Overloaded(DulyError):
    """Too much at once; try again shortly."""

    code, status, title = "overloaded", 429, "Too many requests"

    def __init__(
        self, detail: str = "", *, errors: tuple[FieldError, ...] = (), retry_after: float | None = 1.0
    ) -> None:
        super().__init__(detail, errors=errors, retry_after=retry_after)


class Unavailable(DulyError):
    """A part that this needs does not answer; try again shortly."""

    code, status, title = "unavailable", 503, "Unavailable"

    def __init__(
        self, detail: str = "", *, errors: tuple[FieldError, ...] = (), retry_after: float | None = 1.0
    ) -> None:
        super().__init__(detail, errors=errors, retry_after=retry_after)


class Fenced(Unavailable):
    """Another scheduler holds the term of this shard."""

    code, title = "fenced", "Fenced"


class WrongShard(Unavailable):
    """The slot of this job belongs to another shard by now; nothing was written: try again shortly."""

    code, title = "wrong_shard", "Wrong shard"

    def __init__(
        self,
        detail: str = "",
        *,
        epoch: int = 0,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = 1.0,
    ) -> None:
        self.epoch = epoch  # of the slot map in force at the shard that refused
        super().__init__(detail, errors=errors, retry_after=retry_after)


class OutcomeUnknown(Unavailable):
    """The commit may or may not have happened: read, then repeat."""

    code, title = "outcome_unknown", "Outcome unknown"


class StorageFull(DulyError):
    """The disk under the store is full; nothing was written."""

    code, status, title = "storage_full", 507, "Storage full"


class BlobCorrupt(DulyError):
    """The stored bytes do not match their digest and were not delivered."""

    code, status, title = "blob_corrupt", 500, "Blob corrupt"


class TimedOut(DulyError):
    """It did not happen within the time that was asked for."""

    code, status, title = "timed_out", 504, "Timed out"
