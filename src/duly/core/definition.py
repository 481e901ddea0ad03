"""From what a client wrote to a job: validation beyond types, defaults, and JSON merge patches.

Every complaint names its field by a JSON pointer and says what would be right; all of a body's complaints are
collected before one `InvalidInput` is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from duly.core import contract, policy, views
from duly.core.contract import CommandSpec, FunctionSpec, HttpSpec, JobSpec, KeepSpec, LimitsSpec, RetrySpec, TaskSpec
from duly.core.errors import FieldError, InvalidInput, Malformed, ScheduleError, TooLarge
from duly.core.instants import DAY, parse_duration, parse_instant
from duly.core.misfits import escape, misfits, refused
from duly.core.model import (
    CommandTask,
    FunctionTask,
    HttpTask,
    Job,
    JobId,
    Keep,
    Limits,
    Retry,
    Task,
)

MAX_JOB_BYTES: Final = 256 * 1024
MAX_LABELS: Final = 64
MAX_ENTRIES: Final = 1_000  # of env, inputs, headers, kwargs

T = TypeVar("T")


# -- decoding -----------------------------------------------------------------------------------------------


def decode(body: bytes | msgspec.Raw, shape: type[T], *, limit: int = MAX_JOB_BYTES, prefix: str = "") -> T:
    """JSON as `shape`. Malformed for what is no JSON, InvalidInput with a pointer for what does not fit."""
    if len(memoryview(body)) > limit:
        raise TooLarge(f"the body has {len(memoryview(body)):,} bytes, more than the {limit:,} allowed here")
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = msgspec.UNSET  # what comes after the first misfit cannot be looked at
        raise _refusal(value, shape, error, prefix) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"not valid JSON: {error}") from None
    except RecursionError:
        raise Malformed("nested too deeply") from None


def convert(value: object, shape: type[T]) -> T:
    """Plain JSON values as `shape`; InvalidInput with a pointer for what does not fit."""
    try:
        return msgspec.convert(value, type=shape)
    except msgspec.ValidationError as error:
        raise _refusal(value, shape, error) from None
    except RecursionError:
        raise Malformed("nested too deeply") from None


def _refusal(value: object, shape: type, error: msgspec.ValidationError, prefix: str = "") -> InvalidInput:
    """All that is wrong with a value, of a job also with the fields that have the right shape."""
    wrong = misfits(value, shape, error, prefix)
    if shape is JobSpec and isinstance(value, dict):
        wrong += _wrong_elsewhere(value, [each.pointer.removeprefix(prefix) for each in wrong], prefix)
    return refused(wrong)


def _wrong_elsewhere(value: dict[str, Any], misshapen: list[str], prefix: str) -> list[FieldError]:
    """What is wrong with the meaning of those fields of a job that have the right shape."""
    try:
        spec = msgspec.convert(_sound(value, misshapen), JobSpec)
        define_job(spec, job_id=JobId(""), now=0)
    except msgspec.ValidationError:
        return []  # there is not enough left to judge by
    except InvalidInput as error:
        return [
            FieldError(prefix + each.pointer, each.detail)
            for each in error.errors
            if not any(f"{one}/".startswith(f"{each.pointer}/") for one in misshapen)
        ]
    return []


def _sound(value: dict[str, Any], misshapen: list[str]) -> dict[str, Any]:
    """The job without what these pointers lead to; where its task or its schedule goes, another stands in."""
    sound = dict(value)
    for pointer in misshapen:
        holder = sound
        *path, last = (name.replace("~1", "/").replace("~0", "~") for name in pointer.split("/")[1:])
        for name in path:
            inner = holder.get(name)
            if not isinstance(inner, dict):  # a list: what is wrong within it takes it away as a whole
                last = name
                break
            holder[name] = holder = dict(inner)
        holder.pop(last, None)
    if any(pointer in ("/task", "/task/kind", "/task/name", "/task/url") for pointer in misshapen):
        sound["task"] = {"kind": "function", "name": "-"}
    return {"task": {"kind": "function", "name": "-"}, "schedule": "now", **sound}


# -- jobs ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _known_duration(text: str) -> int | None:
    """The duration, None for a wrong one: a job has seven, and they are nearly always the same."""
    try:
        return parse_duration(text)
    except InvalidInput:
        return None


class _Complaints:
    """Collects the complaints of one body."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self._last: InvalidInput | None = None

    def add(self, pointer: str, detail: str) -> None:
        self.errors.append(FieldError(pointer, detail))

    def attempt(self, pointer: str, parse: Callable[[], T], otherwise: T) -> T:
        """The parsed value, or `otherwise` after noting what was wrong."""
        try:
            return parse()
        except InvalidInput as error:
            self._last = error
            if error.errors and error.errors[0].pointer not in ("", "/"):
                self.errors.extend(error.errors)
            else:
                self.add(pointer, error.detail)
            return otherwise

    def duration(self, pointer: str, text: str, *, least: int = 0, most: int | None = None) -> int:
        value = _known_duration(text)
        if value is None:
            value = self.attempt(pointer, lambda: parse_duration(text), least)
        if value < least or (most is not None and value > most):
            bounds = f"at least {least} µs" if most is None else f"between {least} µs and {most} µs"
            self.add(pointer, f"{text!r} is out of range: {bounds}")
        return value

    def instant(self, pointer: str, text: str | None) -> int | None:
        return None if text is None else self.attempt(pointer, lambda: parse_instant(text), 0)

    def settle(self) -> None:
        if len(self.errors) == 1 and isinstance(self._last, ScheduleError):
            raise self._last
        if self.errors:
            raise refused(self.errors)


class _Margins(NamedTuple):
    """The part of a job that most jobs have alike. Durations in µs."""

    jitter: int
    max_lateness: int
    timeout: int
    catchup_window: int
    retry: Retry
    keep: Keep


def _margins(
    jitter: str,
    max_lateness: str,
    timeout: str,
    catchup_window: str,
    retry: RetrySpec,
    keep: KeepSpec,
    wrong: _Complaints,
) -> _Margins:
    return _Margins(
        jitter=wrong.duration("/jitter", jitter, most=DAY),
        max_lateness=wrong.duration("/max_lateness", max_lateness, least=1),
        timeout=wrong.duration("/timeout", timeout, least=1000),
        catchup_window=wrong.duration("/catchup_window", catchup_window),
        retry=Retry(
            max_attempts=retry.max_attempts,
            backoff=retry.backoff,
            base=wrong.duration("/retry/base", retry.base, most=DAY),
            cap=wrong.duration("/retry/cap", retry.cap, most=30 * DAY),
        ),
        keep=Keep(runs=keep.runs, age=wrong.duration("/keep/for", keep.age)),
    )


@lru_cache(maxsize=256)
def _usual_margins(
    jitter: str, max_lateness: str, timeout: str, catchup_window: str, retry: RetrySpec, keep: KeepSpec
) -> _Margins | None:
    """Remembered, because the jobs of a batch share them; None if something is wrong, which is then told anew."""
    wrong = _Complaints()
    margins = _margins(jitter, max_lateness, timeout, catchup_window, retry, keep, wrong)
    return None if wrong.errors else margins


def define_job(
    spec: JobSpec,
    *,
    job_id: JobId,
    now: int,
    namespace: str = "default",
    body_digest: str = "",
    by: str = "",
    before: Job | None = None,
) -> Job:
    """The job that a spec describes, made at `now` by the holder of a token; with `before`, its next version.

    Raises InvalidInput with every complaint. The schedule is parsed here, so that a bad or impossible one is
    refused before anything is stored.
    """
    wrong = _Complaints()
    task = _define_task(spec.task, wrong)
    start = wrong.instant("/start", spec.start)
    end = wrong.instant("/end", spec.end)
    if start is not None and end is not None and end < start:
        wrong.add("/end", "lies before start")
    if len(spec.labels) > MAX_LABELS:
        wrong.add("/labels", f"more than {MAX_LABELS} labels")
    margins = _usual_margins(
        spec.jitter, spec.max_lateness, spec.timeout, spec.catchup_window, spec.retry, spec.keep
    ) or _margins(spec.jitter, spec.max_lateness, spec.timeout, spec.catchup_window, spec.retry, spec.keep, wrong)
    anchored_at = before.anchored_at if before is not None and before.schedule == spec.schedule else now
    job = Job(
        id=job_id,
        namespace=namespace,
        name=spec.name,
        labels=spec.labels,
        task=task,
        schedule=spec.schedule,
        timezone=spec.timezone,
        dst=spec.dst,
        start=start,
        end=end,
        max_runs=spec.max_runs,
        jitter=margins.jitter,
        calendar=tuple(spec.calendar),
        priority=spec.priority,
        max_lateness=margins.max_lateness,
        timeout=margins.timeout,
        retry=margins.retry,
        misfire=spec.misfire,
        catchup_window=margins.catchup_window,
        overlap=spec.overlap,
        delivery=spec.delivery,
        requires=spec.requires,
        keep=margins.keep,
        state="deleted" if before is not None and before.state == "deleted" else "paused" if spec.paused else "active",
        version=1 if before is None else before.version + 1,
        created_at=now if before is None else before.created_at,
        updated_at=now,
        anchored_at=anchored_at,
        body_digest=body_digest if before is None else before.body_digest,
        spent=None if before is None else before.spent,
        reached=0 if before is None else before.reached,
        since=None if before is None else before.since,
        defined_in=0 if before is None else before.defined_in,
        defined_at=0 if before is None else before.defined_at,
        defined_by=by if before is None else before.defined_by,
        ahead=0 if before is None else before.ahead,
    )
    wrong.attempt("/schedule", lambda: policy.schedule_of(job), None)
    wrong.settle()
    return job


def _define_task(spec: TaskSpec, wrong: _Complaints) -> Task:
    match spec:
        case FunctionSpec():
            if len(spec.kwargs) > MAX_ENTRIES:
                wrong.add("/task/kwargs", f"more than {MAX_ENTRIES} entries")
            return FunctionTask(
                name=spec.name,
                args=msgspec.Raw(msgspec.json.encode(spec.args)),
                kwargs=msgspec.Raw(msgspec.json.encode(spec.kwargs)),
                mode=spec.mode,
            )
        case CommandSpec():
            return _define_command(spec, wrong)
        case HttpSpec():
            for name, value in spec.headers.items():
                if any((ord(letter) < 32 and letter != "\t") or ord(letter) == 127 for letter in value):
                    wrong.add(f"/task/headers/{escape(name)}", "a header value has no control characters")
            return HttpTask(
                url=spec.url,
                method=spec.method,
                headers=spec.headers,
                body=msgspec.Raw(msgspec.json.encode(spec.body)),
                expect=spec.expect,
            )


def _define_command(spec: CommandSpec, wrong: _Complaints) -> CommandTask:
    if spec.code is None and not spec.argv:
        wrong.add("/task/argv", 'name a program, such as ["/usr/bin/env"], or give code')
    for index, argument in enumerate(spec.argv):
        if "\0" in argument:
            wrong.add(f"/task/argv/{index}", "an argument has no NUL")
    for name, value in spec.env.items():
        if "\0" in value:
            wrong.add(f"/task/env/{escape(name)}", "an environment value has no NUL")
    for field, entries in (("env", spec.env), ("inputs", spec.inputs)):
        if len(entries) > MAX_ENTRIES:
            wrong.add(f"/task/{field}", f"more than {MAX_ENTRIES} entries")
    for path in spec.inputs:
        problem = path_problem(path)
        if problem:
            wrong.add(f"/task/inputs/{escape(path)}", problem)
    return CommandTask(
        argv=tuple(spec.argv),
        code=spec.code,
        env=spec.env,
        inputs=spec.inputs,
        stdin=spec.stdin,
        limits=None if spec.limits is None else _define_limits(spec.limits, wrong),
        isolation=spec.isolation,
    )


def _define_limits(spec: LimitsSpec, wrong: _Complaints) -> Limits:
    return Limits(
        cpu=None if spec.cpu is None else wrong.duration("/task/limits/cpu", spec.cpu, least=1000),
        memory=spec.memory,
        file_size=spec.file_size,
        open_files=spec.open_files,
    )


def path_problem(path: str) -> str | None:
    """What is wrong with a relative file path from a client or a task, or None.

    Accepted: at most 1,024 bytes, parts between single slashes, none of them empty, `.` or `..`, no control
    characters, no backslash.
    """
    if len(path.encode("utf-8", "surrogatepass")) > 1024:
        return "longer than 1,024 bytes"
    if any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) <= 0xDFFF for letter in path):
        return "a path has no control characters"
    if "\\" in path:
        return "write paths with /, without \\"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "a relative path such as data/sales.csv, without empty, . or .. parts"
    return None


# -- changes ------------------------------------------------------------------------------------------------


def patch_job(job: Job, patch: Any, *, now: int) -> Job:
    """The next version of a job under a JSON merge patch (RFC 7396); `null` puts a field back to its default.

    Read-only fields are refused unless they say what the job already says.
    """
    if not isinstance(patch, dict):
        raise InvalidInput.at("", "a merge patch is a JSON object")
    document = msgspec.to_builtins(views.job_spec(job))
    patch = dict(patch)
    for name in contract.READ_ONLY:
        if name in patch:
            raise InvalidInput.at(f"/{name}", f"{name} is read-only (to pause a job, set paused)")
    task = patch.get("task")
    if isinstance(task, dict) and task.get("kind", document["task"]["kind"]) != document["task"]["kind"]:
        document["task"] = {}  # another kind of task shares no fields with the old one
    merged = merge(document, patch)
    return define_job(convert(merged, JobSpec), job_id=job.id, now=now, namespace=job.namespace, before=job)


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge member by member, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result
