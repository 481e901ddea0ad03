"""A warm child process that runs functions: `child <spec as JSON>`, over a socket that it inherits.

Its main thread runs sync functions (or one event loop of coroutines), nothing else; a second thread reads frames,
so that a retract is answered while a function is busy. It ends when the socket does: a child never outlives its
worker for longer than the function that it is in can hold the interpreter.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec

from duly.core.errors import DulyError
from duly.tasks import context
from duly.tasks.capture import capture_streams
from duly.tasks.coroutines import AsyncExecutor, fine_loop, serve
from duly.tasks.executor import Interrupted, SyncExecutor
from duly.tasks.registry import FunctionRegistry, import_app
from duly.tasks.wire import (
    Answer,
    Board,
    Close,
    Command,
    Frames,
    Hello,
    Kill,
    Retract,
    Retracted,
    Work,
    commands,
    frame,
)

BOOT = "import sys,json;s=json.loads(sys.argv[1]);sys.path[:]=s['path'];from duly.tasks.child import main;main(s)"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told at its start. `script`: the program whose `__main__` the apps or functions live in."""

    socket: int
    board: int
    mode: str
    path: list[str]
    apps: list[str]
    folder: str
    spin: int
    limit: int = 0
    shares_clock: bool = False
    script: str = ""


def main(raw: dict[str, Any]) -> None:
    """Serve until the worker's end of the socket closes."""
    spec = msgspec.convert(raw, Spec)
    sys.argv[:] = sys.argv[:1]
    link = socket.socket(fileno=spec.socket)
    os.set_inheritable(spec.socket, False)  # what a function starts must not keep the worker's socket
    board = Board(spec.board)
    os.close(spec.board)
    lock = threading.Lock()

    def emit(answer: Answer) -> None:
        data = frame(answer)
        try:
            with lock:
                link.sendall(data)
        except OSError:  # the worker is gone, and with it whoever would care
            os._exit(0)

    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the worker's to handle: it drains
    capture_streams(context.capture_now)
    if not logging.getLogger().handlers:
        logging.getLogger().setLevel(logging.INFO)
    registry = FunctionRegistry("any")  # the worker bars what is not registered
    try:
        if spec.script:
            _import_script(spec.script)
        for app in spec.apps:
            registry.update(import_app(app))
    except DulyError as error:
        emit(Hello(error.detail))
        return
    except Exception as error:  # noqa: BLE001 - importing a user's module may raise anything
        emit(Hello(f"{type(error).__name__}: {error}"))
        return
    emit(Hello())
    if spec.mode == "async":
        _serve_coroutines(spec, link, board, registry, emit)
    else:
        _serve_functions(spec, link, board, registry, emit)


def _import_script(path: str) -> None:
    """Run the program's script again under another name, as multiprocessing does, and let it be `__main__`."""
    import runpy
    import types

    module = types.ModuleType("__duly_main__")
    module.__dict__.update(runpy.run_path(path, run_name="__duly_main__"))
    for value in list(module.__dict__.values()):
        if getattr(value, "__module__", None) == "__duly_main__" and callable(value):
            try:
                value.__module__ = "__main__"
            except (AttributeError, TypeError):
                continue
    sys.modules["__main__"] = sys.modules["__duly_main__"] = module


def _serve_functions(
    spec: Spec, link: socket.socket, board: Board, registry: FunctionRegistry, emit: Callable[[Answer], None]
) -> None:
    executor = SyncExecutor(registry, board, emit, spin=spec.spin, folder=spec.folder, shares_clock=spec.shares_clock)
    context.fallback.run = lambda: executor.current

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        if board.words[2] and board.words[2] == board.words[0]:
            board.words[2] = 0
            raise Interrupted("stopped by duly: past its timeout, or cancelled")

    signal.signal(signal.SIGTERM, interrupt)

    def read() -> None:
        frames = Frames()
        while data := _receive(link):
            for view in frames.feed(data):
                command = commands.decode(view)
                if isinstance(command, Work):
                    executor.accept(command.items)
                elif isinstance(command, Retract):
                    emit(Retracted(command.serial, executor.retract(command.tickets)))
                elif isinstance(command, Close):
                    executor.close()
        os._exit(0)  # the worker is gone: whatever runs is nobody's any more

    threading.Thread(target=read, name="duly-inbox", daemon=True).start()
    executor.run()


def _serve_coroutines(
    spec: Spec, link: socket.socket, board: Board, registry: FunctionRegistry, emit: Callable[[Answer], None]
) -> None:
    executor = AsyncExecutor(
        registry,
        board,
        emit,
        spin=spec.spin,
        folder=spec.folder,
        limit=spec.limit,
        shares_clock=spec.shares_clock,
    )
    signal.signal(signal.SIGTERM, lambda *_: None)
    loop = fine_loop()
    closed: asyncio.Future[None] = loop.create_future()
    frames = Frames()

    def readable() -> None:
        data = _receive(link)
        if not data:
            os._exit(0)
        for view in frames.feed(data):
            _obey(executor, commands.decode(view), emit, closed)

    loop.add_reader(link, readable)
    serve(executor, loop, closed)


def _obey(
    executor: AsyncExecutor, command: Command, emit: Callable[[Answer], None], closed: asyncio.Future[None]
) -> None:
    if isinstance(command, Work):
        executor.accept(command.items)
    elif isinstance(command, Retract):
        emit(Retracted(command.serial, executor.retract(command.tickets)))
    elif isinstance(command, Kill):
        executor.kill(command.ticket)
    elif not closed.done():
        closed.set_result(None)


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(1 << 18)
    except OSError:
        return b""


def arguments(spec: Spec) -> list[str]:
    """The command line of a child: this interpreter, isolated from the environment, with this process's path."""
    return [sys.executable, "-I", "-c", BOOT, json.dumps(msgspec.to_builtins(spec))]
