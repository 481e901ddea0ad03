"""The Python client for ordinary code: each call of AsyncClient, made to block.

    client = Client.connect("http://host:7350", token="…")
    job = client.create(code="./report", schedule="every 15m")       # blocks
    job = await client.aio.create(code="./report", schedule=…)       # the same, in an event loop

The calls run in an event loop of their own (LoopThread), whatever the program does.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from duly.faces.async_client import AsyncClient
from duly.faces.handles import AsyncHandle, Handle
from duly.faces.loop_thread import LoopThread
from duly.faces.registration import Functions, JobFunction, Registrations
from duly.faces.specs import JobOptions, Time
from duly.faces.submission import Call, SubmitOptions
from duly.faces.transport import DEFAULT_URL, Transport

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


def _blocking(
    call: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], R]:
    @functools.wraps(call)
    def blocking(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.thread.wait(call(self.aio, *args, **kwargs))

    return blocking


def _iterating(
    call: Callable[Concatenate[AsyncClient, P], AsyncIterator[R]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @functools.wraps(call)
    def iterating(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self.thread.each(call(self.aio, *args, **kwargs))

    return iterating


class _Decorator(Protocol):
    """What `Client.job(…)` gives."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]]) -> JobFunction[P, Coroutine[Any, Any, T], T]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> JobFunction[P, R, R]: ...


class Client:
    """What a client can do, over any transport; `aio` has the same calls as coroutines. Usable from any thread."""

    def __init__(
        self, transport: Transport, *, thread: LoopThread | None = None, functions: Functions | None = None
    ) -> None:
        """`functions` is where a worker of this program finds decorated functions."""
        self.aio = AsyncClient(transport, Registrations(functions))
        self.thread = LoopThread() if thread is None else thread

    @classmethod
    def connect(cls, urls: str | Sequence[str] = DEFAULT_URL, *, token: str | None = None) -> Client:
        """A client of the servicers at `urls`: one, or several that stand side by side."""
        from duly.faces.http_transport import HttpTransport

        return Client(HttpTransport(urls, token=token))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread."""
        self.thread.wait(self.aio.close())
        self.thread.close()

    # -- functions ------------------------------------------------------------------------------------------

    def job(self, schedule: Time | None = None, **options: Unpack[JobOptions]) -> _Decorator:
        """Decorate a function whose runs shall go to workers; with a schedule it has a job, too (see `register`).

        The function can be called as before; `function.submit(…)` runs it once. Its arguments and result travel as
        JSON. Raises InvalidInput here for a bad schedule or option.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            self.aio.registrations.add(function, schedule, options)
            function.submit = functools.partial(self.submit, function)  # type: ignore[attr-defined]  # a new one
            return function

        return cast("_Decorator", decorate)

    @overload
    def submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, at: Time | None = None, **options: Any
    ) -> Handle[T]: ...
    @overload
    def submit(
        self, function: Callable[..., T], /, *args: Any, at: Time | None = None, **options: Any
    ) -> Handle[T]: ...
    @overload
    def submit(self, function: str, /, *args: Any, at: Time | None = None, **options: Any) -> Handle[Any]: ...
    @functools.wraps(AsyncClient.submit)
    def submit(self, function: Any, /, *args: Any, **options: Any) -> Handle[Any]:
        return Handle(self.thread.wait(self.aio.submit(function, *args, **options)), self.thread)

    @overload
    def submit_many(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Handle[T]]: ...
    @overload
    def submit_many(
        self,
        function: Callable[..., T],
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Handle[T]]: ...
    @overload
    def submit_many(
        self,
        function: str,
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Handle[Any]]: ...
    @functools.wraps(AsyncClient.submit_many)
    def submit_many(self, function: Any, calls: Iterable[Call], **options: Any) -> list[Handle[Any]]:
        handles: list[AsyncHandle[Any]] = self.thread.wait(self.aio.submit_many(function, calls, **options))
        return [Handle(handle, self.thread) for handle in handles]

    register = _blocking(AsyncClient.register)

    # -- jobs -----------------------------------------------------------------------------------------------

    create = _blocking(AsyncClient.create)
    get = _blocking(AsyncClient.get)
    update = _blocking(AsyncClient.update)
    versions = _blocking(AsyncClient.versions)
    get_version = _blocking(AsyncClient.get_version)
    restore = _blocking(AsyncClient.restore)
    delete = _blocking(AsyncClient.delete)
    jobs = _blocking(AsyncClient.jobs)
    running = _blocking(AsyncClient.running)
    trigger = _blocking(AsyncClient.trigger)
    pause = _blocking(AsyncClient.pause)
    resume = _blocking(AsyncClient.resume)
    bulk = _blocking(AsyncClient.bulk)

    # -- runs -----------------------------------------------------------------------------------------------

    runs = _blocking(AsyncClient.runs)
    get_run = _blocking(AsyncClient.get_run)
    wait = _blocking(AsyncClient.wait)
    cancel = _blocking(AsyncClient.cancel)
    retry = _blocking(AsyncClient.retry)
    explain = _blocking(AsyncClient.explain)
    log = _blocking(AsyncClient.log)
    read_log = _iterating(AsyncClient.read_log)
    follow_log = _iterating(AsyncClient.follow_log)
    outputs = _blocking(AsyncClient.outputs)
    output = _blocking(AsyncClient.output)
    open_output = _iterating(AsyncClient.open_output)
    save_output = _blocking(AsyncClient.save_output)

    # -- the rest -------------------------------------------------------------------------------------------

    preview = _blocking(AsyncClient.preview)
    stats = _blocking(AsyncClient.stats)
    webhooks = _blocking(AsyncClient.webhooks)
    workers = _blocking(AsyncClient.workers)
    shards = _blocking(AsyncClient.shards)
    version = _blocking(AsyncClient.version)
    upload = _blocking(AsyncClient.upload)
    events = _iterating(AsyncClient.events)
