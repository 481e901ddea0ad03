"""Calls of functions → jobs that run once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict

from duly.core.contract import FunctionSpec, JobSpec
from duly.core.errors import InvalidInput
from duly.core.model import Delivery
from duly.faces.registration import Registrations
from duly.faces.specs import (
    Duration,
    RetryOption,
    Time,
    function_mode,
    function_name,
    function_spec,
    job_spec,
    schedule_text,
)

BATCH: Final = 10_000  # jobs of one request
Call = Sequence[Any]  # ("a.png", 800), or (("a.png",), {"width": 800})


class SubmitOptions(TypedDict, total=False):
    """How submitted runs are treated; what is left out is as the function's decorator says."""

    priority: int
    timeout: Duration
    retry: RetryOption
    max_lateness: Duration
    labels: Mapping[str, str]
    name: str
    delivery: Delivery
    requires: Mapping[str, str]


def submit_spec(
    registrations: Registrations,
    function: Callable[..., Any] | str,
    args: Sequence[Any],
    at: Time | None,
    keywords: Mapping[str, Any],
) -> JobSpec:
    """The job of one call; `keywords` are options and the function's own, told apart by name."""
    options = {name: value for name, value in keywords.items() if name in SubmitOptions.__annotations__}
    kwargs = {name: value for name, value in keywords.items() if name not in options}
    task = function_spec(function, args, kwargs)
    return job_spec(task, at, {**registrations.defaults(task.name), **options})


def batch_specs(
    registrations: Registrations,
    function: Callable[..., Any] | str,
    calls: Sequence[Call],
    at: Time | Sequence[Time | None] | None,
    options: Mapping[str, Any],
) -> list[JobSpec]:
    """The jobs of many calls. The options are checked once; TypeError for a call that the function does not take."""
    name, mode = function_name(function), function_mode(function)
    check = None if isinstance(function, str) else _ArgumentCheck(function)
    template = job_spec(FunctionSpec(name=name), None, {**registrations.defaults(name), **options})
    fields = {field: getattr(template, field) for field in JobSpec.__struct_fields__}
    specs: list[JobSpec] = []
    for call, time in zip(calls, _times(at, len(calls)), strict=True):
        args, kwargs = _arguments(call)
        if check is not None:
            check(args, kwargs)
        fields["task"] = FunctionSpec(name=name, args=list(args), kwargs=kwargs, mode=mode)
        fields["schedule"] = time
        specs.append(JobSpec(**fields))
    return specs


def _times(at: Time | Sequence[Time | None] | None, count: int) -> list[str]:
    if at is None or isinstance(at, str | datetime | timedelta):
        return [schedule_text(at)] * count
    if len(at) != count:
        raise InvalidInput.at(
            "/schedule", f"{len(at):,} times for {count:,} calls; give one time, or one for each call"
        )
    return [schedule_text(one) for one in at]


def _arguments(call: Call) -> tuple[Sequence[Any], dict[str, Any]]:
    if isinstance(call, str | bytes) or not isinstance(call, Sequence):
        raise TypeError(f"a call is a tuple of arguments, as ({call!r},), not {call!r}")
    if len(call) == 2 and isinstance(call[0], tuple | list) and isinstance(call[1], dict):
        return call[0], call[1]
    return call, {}


class _ArgumentCheck:
    """Raises the TypeError that calling the function with these arguments would; quick for positional ones."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        named = any(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters)
        self._least = len(positional) + 1 if named else sum(one.default is one.empty for one in positional)
        self._most = len(positional)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if kwargs or not self._least <= len(args) <= self._most:
            self._signature.bind(*args, **kwargs)
