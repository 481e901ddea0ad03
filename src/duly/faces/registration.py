"""Decorated functions, and their jobs: created once, however often and wherever the program starts.

@duly.job(schedule=…)  ──at start──▶ create with the key `function:<name>`
                                       ├─ new, or as it was      nothing more to do
                                       ├─ made otherwise before  update what differs
                                       └─ deleted meanwhile      create the next generation of the key
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from duly.core.contract import JobSpec, JobView
from duly.core.definition import define_job
from duly.core.errors import Conflict, IdempotencyKeyReused, NotFound
from duly.core.job_ids import keyed_job_id
from duly.core.model import JobId
from duly.core.views import job_spec as spec_of_job
from duly.faces.handles import Handle
from duly.faces.specs import Time, function_name, function_spec, job_spec
from duly.faces.transport import JobFilter, Transport

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

GENERATIONS: Final = 100
COMPARED: Final = frozenset(JobSpec.__struct_encode_fields__) - {"paused"}  # whoever paused a job shall resume it
SUBMITTED_TOO: Final = ("labels", "priority", "max_lateness", "timeout", "retry", "delivery", "requires", "keep")


class JobFunction(Protocol[P, R_co, T]):
    """A decorated function: callable as before, and `submit` runs it on a worker. T is what its runs result in."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Calls it here and now."""
        ...

    @property
    def submit(self) -> Callable[..., Handle[T]]:
        """As `Client.submit` of this function: its arguments, and at=, priority=, key=, timeout=, …"""
        ...


class Functions(Protocol):
    """Where a worker in this program finds functions by name."""

    def add(self, function: Callable[..., Any], name: str = "") -> str:
        """Makes it known; returns its name."""
        ...


class Registration(msgspec.Struct, frozen=True):
    """A decorated function. `spec` is None for one that is only submitted."""

    name: str
    options: Mapping[str, Any]
    spec: JobSpec | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that its submitted runs share."""
        return {name: value for name, value in self.options.items() if name in SUBMITTED_TOO}


class Registrations:
    """The decorated functions of a program."""

    def __init__(self, functions: Functions | None = None) -> None:
        self._functions = functions
        self._known: dict[str, Registration] = {}

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._known.values())

    def add(self, function: Callable[..., Any], at: Time | None, options: Mapping[str, Any]) -> Registration:
        """Notes a function. Raises InvalidInput for a bad schedule or option, here where it is written."""
        name = function_name(function)
        if at is None:
            job_spec(function_spec(name), None, options)
            registration = Registration(name, options)
        else:
            named = {"name": getattr(function, "__name__", name), **options}
            spec = job_spec(function_spec(function), at, named)
            registration = Registration(name, options, canonical(spec))
        if self._functions is not None:
            self._functions.add(function, name)
        self._known[name] = registration
        return registration

    def defaults(self, name: str) -> dict[str, Any]:
        """What the decorator of that function says about its submitted runs."""
        registration = self._known.get(name)
        return {} if registration is None else registration.defaults


async def register(transport: Transport, registration: Registration) -> JobView | None:
    """Its job, created or brought up to date; None for a function without a schedule."""
    if registration.spec is None:
        return None
    for generation in range(1, GENERATIONS):
        key = f"function:{quote(registration.name, safe=':.')}" + (f"#{generation}" if generation > 1 else "")
        job = await _keyed(transport, registration.spec, key)
        if job.state == "deleted":
            continue
        patch = difference(_document(job), _document(registration.spec))
        if not patch:
            return job
        try:
            return await transport.update_job(job.id, patch, if_version=None)
        except Conflict:  # deleted in this very moment
            continue
    raise Conflict(f"the job of {registration.name} was deleted {GENERATIONS} times; give it another name")


async def _keyed(transport: Transport, spec: JobSpec, key: str) -> JobView:
    try:
        return (await transport.create_job(spec, key=key))[0]
    except IdempotencyKeyReused:
        pass
    # Which namespace a token stands for is the server's to know; any job of it tells.
    namespaces = {"default"} | {job.namespace for job in (await transport.list_jobs(JobFilter(limit=1))).items}
    for namespace in sorted(namespaces, key=lambda name: name == "default"):
        try:
            return await transport.get_job(keyed_job_id(namespace, key))
        except NotFound:
            continue
    raise NotFound(f"the job with the key {key!r} is not to be found")


def canonical(spec: JobSpec) -> JobSpec:
    """The spec as the server will tell it: defaults filled in, durations in their shortest form."""
    return spec_of_job(define_job(spec, job_id=JobId(""), now=0))


def _document(job: JobView | JobSpec) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(job)
    return {name: value for name, value in document.items() if name in COMPARED}


def difference(before: Any, after: Any) -> Any:
    """The JSON merge patch (RFC 7396) that makes `after` of `before`; {} if they are equal."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    patch: dict[str, Any] = {}
    for name in before.keys() | after.keys():
        if name not in after:
            patch[name] = None
        elif before.get(name) != after[name]:
            patch[name] = difference(before.get(name), after[name])
    return patch
