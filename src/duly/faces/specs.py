"""From what a Python program says to the shapes of the contract: job options, times, functions and their arguments."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Any, Final, Literal, TypedDict

import msgspec

from duly.core.contract import FunctionSpec, JobSpec, KeepSpec, RetrySpec, TaskSpec
from duly.core.definition import convert
from duly.core.errors import InvalidInput
from duly.core.instants import format_duration, format_instant, parse_duration
from duly.core.model import Delivery, Dst, Misfire, Overlap

Duration = str | timedelta  # "1h30m", or a timedelta
Time = str | datetime | timedelta  # a schedule such as "in 5m"; an aware datetime; from now on
RetryOption = int | RetrySpec | Mapping[str, Any]  # 5: at most five attempts

_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY: Final = re.compile(r"[!-~]{1,255}", re.ASCII)
_MAIN: Final = ("__main__", "__mp_main__")
_DURATIONS: Final = ("jitter", "max_lateness", "timeout", "catchup_window")
_TIMES: Final = ("start", "end")


class JobOptions(TypedDict, total=False):
    """The fields of a job besides its task and schedule; what is left out has the server's default."""

    name: str
    labels: Mapping[str, str]
    timezone: str
    dst: Dst
    start: str | datetime | None
    end: str | datetime | None
    max_runs: int | None
    jitter: Duration
    calendar: Sequence[str]
    priority: int
    max_lateness: Duration
    timeout: Duration
    retry: RetryOption
    misfire: Misfire
    catchup_window: Duration
    overlap: Overlap
    delivery: Delivery
    requires: Mapping[str, str]
    keep: KeepSpec | Mapping[str, Any]
    paused: bool


def microseconds(value: float | Duration) -> int:
    """Seconds as a number, "10m" or a timedelta → microseconds."""
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    return round(value * 1_000_000)


def duration(value: Duration, pointer: str = "") -> str:
    """A duration as the contract writes it. InvalidInput at `pointer` for a bare number."""
    if isinstance(value, timedelta):
        return format_duration(value // _MICROSECOND)
    if isinstance(value, str):
        return value
    raise InvalidInput.at(pointer, f"{value!r} does not say its unit; write a duration like '30s', or a timedelta")


def instant(value: str | datetime, pointer: str = "") -> str:
    """An instant as the contract writes it. InvalidInput at `pointer` for a datetime without a time zone."""
    if isinstance(value, str):
        return value
    if value.tzinfo is None:
        raise InvalidInput.at(pointer, "a datetime without a time zone could be any instant; give it a tzinfo")
    return format_instant((value - _EPOCH) // _MICROSECOND)


def schedule_text(at: Time | None) -> str:
    """The schedule for a time: None is now, a timedelta counts from now, text is a schedule already."""
    if at is None:
        return "now"
    if isinstance(at, timedelta):
        return f"in {format_duration(at // _MICROSECOND)}"
    return instant(at, "/schedule")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Job options as plain JSON values, named and written as in the contract. TypeError for one that is none."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if name not in JobOptions.__annotations__:
            raise TypeError(f"a job has no option {name!r}; it has {', '.join(sorted(JobOptions.__annotations__))}")
        if name in _DURATIONS and value is not None:
            value = duration(value, f"/{name}")
        elif name in _TIMES and value is not None:
            value = instant(value, f"/{name}")
        elif name == "retry" and isinstance(value, int):
            value = {"max_attempts": value}
        elif name in ("retry", "keep") and isinstance(value, Mapping):
            value = {key: duration(one) if isinstance(one, timedelta) else one for key, one in value.items()}
        elif isinstance(value, Mapping):
            value = dict(value)
        plain[name] = msgspec.to_builtins(value)
    return plain


def task_spec(task: Mapping[str, Any]) -> TaskSpec:
    """A task written as in the API. InvalidInput with a pointer."""
    return convert({"schedule": "now", "task": dict(task)}, JobSpec).task


def job_spec(task: TaskSpec, at: Time | None, options: Mapping[str, Any]) -> JobSpec:
    """A job, its options checked against the contract. InvalidInput with a pointer."""
    given = {name: value for name, value in plain_options(options).items() if value is not None}
    spec = convert({**given, "schedule": schedule_text(at), "task": {"kind": "function", "name": "-"}}, JobSpec)
    return msgspec.structs.replace(spec, task=task)


def checked_key(key: str | None) -> str | None:
    """An idempotency key as it is. InvalidInput for one that no header could carry."""
    if key is not None and _KEY.fullmatch(key) is None:
        raise InvalidInput.at("/key", f"a key has 1 to 255 visible ASCII characters, unlike {key[:40]!r}")
    return key


# -- functions ----------------------------------------------------------------------------------------------


def function_name(function: Callable[..., Any] | str) -> str:
    """`module:qualname`, under which workers know it; a script's functions go by the script's name.

    Raises InvalidInput for a function that has no place in a module: a lambda, or one defined in another function.
    """
    if isinstance(function, str):
        return function
    bare = inspect.unwrap(function)
    module = getattr(bare, "__module__", None)
    qualname = getattr(bare, "__qualname__", "")
    if not module or not qualname or "<" in qualname:
        raise InvalidInput.at(
            "/task/name",
            f"{qualname or function!r} cannot be found by its name: define it at the top of a module",
        )
    return f"{_main_name(bare) if module in _MAIN else module}:{qualname}"


def _main_name(function: Callable[..., Any]) -> str:
    """What a worker imports to get what is `__main__` here: the module after -m, or the script without .py."""
    namespace = getattr(function, "__globals__", None) or vars(sys.modules["__main__"])
    spec = namespace.get("__spec__")
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = namespace.get("__file__")
    return PurePath(file).stem if isinstance(file, str) else "__main__"


def function_mode(function: Callable[..., Any] | str) -> Literal["sync", "async"] | None:
    """Whether calling it gives a coroutine; None for a name, which nothing is known of here."""
    if isinstance(function, str):
        return None
    return "async" if inspect.iscoroutinefunction(inspect.unwrap(function)) else "sync"


def function_spec(
    function: Callable[..., Any] | str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> FunctionSpec:
    """A call as a task. TypeError if the function does not take these arguments."""
    kwargs = {} if kwargs is None else dict(kwargs)
    if not isinstance(function, str):
        inspect.signature(function).bind(*args, **kwargs)
    return FunctionSpec(name=function_name(function), args=list(args), kwargs=kwargs, mode=function_mode(function))
