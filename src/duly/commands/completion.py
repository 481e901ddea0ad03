"""`duly completion`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL", help="For which shell.")],
) -> None:
    """Print a completion script, as for: duly completion bash > ~/.local/share/bash-completion/completions/duly."""
    from duly.cli import app

    sys.stdout.write(app.generate_completion(prog_name="duly", shell=shell))
