"""An app as a user would write one, for `--app workers.app:app`."""

from __future__ import annotations

from duly.tasks.registry import FunctionRegistry

app = FunctionRegistry()


def hello(name: str) -> str:
    return f"hello {name}"


app.add(hello)
