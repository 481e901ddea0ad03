"""`duly config show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from duly.commands.connection import Output
from duly.commands.terminal import put_json, table

_PLAIN = Output()


def show(
    *,
    config: Annotated[Path | None, Parameter(help="Settings file instead of ./duly.toml.")] = None,
    output: Output = _PLAIN,
) -> None:
    """Show each setting and where it came from."""
    from duly.settings import load

    settings = list(load(path=config))
    if output.json:
        items = [
            {"name": one.name, "value": one.value, "origin": one.origin, "description": one.description}
            for one in settings
        ]
        put_json({"items": items})
        return
    rows = [(one.name, _text(one.value), one.origin, one.description) for one in settings]
    table(("SETTING", "VALUE", "FROM", "WHAT"), rows)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
