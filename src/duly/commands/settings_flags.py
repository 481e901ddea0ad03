"""The settings that several commands take as flags: each has its word in the environment and in duly.toml, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Directory = Annotated[Path | None, Parameter(name="--dir", help="Directory of stores, files and tokens.")]
SettingsFile = Annotated[Path | None, Parameter(help="Settings file instead of ./duly.toml.")]
Host = Annotated[str | None, Parameter(help="Address to listen on; any but loopback needs tokens.")]
Port = Annotated[int | None, Parameter(help="Port to listen on; 0 takes a free one.")]
Slots = Annotated[int | None, Parameter(help="Runs in processes at once; the number of CPUs by default.")]
Apps = Annotated[
    tuple[str, ...], Parameter(negative=(), help="MODULE:NAME of a Duly whose functions to run; repeatable.")
]
Functions = Annotated[
    Literal["registered", "any"] | None, Parameter(help="Run registered functions only, or any importable one.")
]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"] | None, Parameter(help="Least level to log.")]
