"""Which functions a worker may run: "module:qualname" → the callable and whether it is a coroutine function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from duly.core.errors import InvalidInput

Mode = Literal["sync", "async"]
Policy = Literal["registered", "any"]

_MAIN = "__main__"


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a function is registered. InvalidInput for one that cannot be found by name."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or "<" in qualname:
        raise InvalidInput.at(
            "/task/name",
            f"{qualname or function!r} cannot be found by its name: define it at the top of a module",
        )
    return f"{module}:{qualname}"


def mode_of(function: Callable[..., Any]) -> Mode:
    """Whether calling it gives a coroutine."""
    call = getattr(function, "__call__", None)  # noqa: B004 - a callable object may have an async __call__
    return "async" if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call) else "sync"


class FunctionRegistry:
    """Functions by name. With `policy="any"`, whatever can be imported counts as registered."""

    def __init__(self, policy: Policy = "registered") -> None:
        self.policy: Policy = policy
        self._known: dict[str, tuple[Callable[..., Any], Mode]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, function: Callable[..., Any], name: str = "") -> str:
        """Register a function; returns its name. The last one of a name counts."""
        name = name or name_of(function)
        self._known[name] = (function, mode_of(function))
        return name

    def update(self, other: FunctionRegistry) -> None:
        """Take over everything that another registry has."""
        self._known.update(other._known)

    def mode(self, name: str) -> Mode | None:
        """How a function runs, None if it is not known (yet). Imports nothing."""
        found = self._known.get(name)
        return None if found is None else found[1]

    def find(self, name: str) -> tuple[Callable[..., Any], Mode]:
        """The function of a name. InvalidInput, saying what would be right, if the worker may not run it."""
        found = self._known.get(name)
        if found is not None:
            return found
        module, colon, qualname = name.partition(":")
        if not colon or not module or not qualname:
            raise InvalidInput.at("/task/name", f"{name!r} is not MODULE:FUNCTION, as in reports:nightly")
        if self.policy != "any":
            raise not_registered(name)
        function = _import(name, module, qualname)
        self._known[name] = found = (function, mode_of(function))
        return found


def not_registered(name: str) -> InvalidInput:
    """The error for a function that a worker may not run, with what would be right."""
    module = name.partition(":")[0]
    return InvalidInput.at(
        "/task/name",
        f"function {name!r} is not registered here: decorate it with @duly.job and start the worker "
        f"with --app {module}:NAME (the module and the name of its Duly), or with --functions any",
    )


def _import(name: str, module: str, qualname: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInput.at("/task/name", f"function {name!r} cannot be imported here: {error}") from error
    if not callable(found):
        raise InvalidInput.at("/task/name", f"{name!r} is not a function but a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def app_object(spec: str) -> object:
    """What MODULE:NAME names. Importing the module runs it; "__main__:NAME" is this program's own script.

    Raises InvalidInput, with what would be right, when there is no such module or name.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise InvalidInput.at("/app", f"{spec!r} is not MODULE:NAME, as in reports:duly")
    try:
        module = sys.modules[_MAIN] if module_name == _MAIN else importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInput.at("/app", f"module {module_name!r} cannot be imported: {error}") from error
    try:
        found: object = getattr(module, name)
    except AttributeError as error:
        raise InvalidInput.at("/app", f"module {module_name!r} has no {name!r}") from error
    return found


def import_app(spec: str) -> FunctionRegistry:
    """The functions of an app given as MODULE:NAME: an object with a `functions` registry, or a registry itself.

    Raises InvalidInput, with what would be right, when there is no such module, name or registry.
    """
    app = app_object(spec)
    functions = app if isinstance(app, FunctionRegistry) else getattr(app, "functions", None)
    if not isinstance(functions, FunctionRegistry):
        raise InvalidInput.at("/app", f"{spec} is a {type(app).__name__}, not a Duly (nothing to register)")
    return functions
