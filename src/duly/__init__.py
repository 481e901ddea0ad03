"""duly: a distributed job scheduler that says how late each run was.

`Duly` is a scheduler inside this program, or a client of one elsewhere; `current_run` is the run that the
calling task belongs to; `JobFailed` and `BatchRefused` are what a client raises besides the errors of
`duly.core.errors`. All are imported on first use, so that `import duly` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duly.version import __version__

if TYPE_CHECKING:
    from duly.faces.handles import BatchRefused, JobFailed
    from duly.program import Duly
    from duly.tasks.context import current_run

__all__ = ["BatchRefused", "Duly", "JobFailed", "__version__", "current_run"]


def __getattr__(name: str) -> object:
    if name == "Duly":
        from duly.program import Duly

        return Duly
    if name == "current_run":
        from duly.tasks.context import current_run

        return current_run
    if name in ("BatchRefused", "JobFailed"):
        from duly.faces import handles

        return getattr(handles, name)
    raise AttributeError(f"module 'duly' has no attribute {name!r}")
