"""`duly bench`: measures duly on this machine and prints a table, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from duly.core.errors import InvalidInput

if TYPE_CHECKING:
    from duly.bench.measure import Figure


Watch = Callable[[str], AbstractContextManager[Callable[[str], None]]]  # what is done → a place to tell how it goes


def _unwatched(_: str) -> AbstractContextManager[Callable[[str], None]]:
    return nullcontext(lambda text: None)


def main(
    *,
    quick: bool = False,
    json: bool = False,
    only: tuple[str, ...] = (),
    cluster: bool = False,
    watch: Watch = _unwatched,
) -> int:
    """Run the benchmark, of an embedded duly or of a cluster. Exit status 0; InvalidInput for an unknown row."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from duly.bench import suite

    choices: tuple[str, ...] = suite.CHOICES
    figures = suite.figures
    if cluster:
        from duly.bench import cluster as cluster_suite

        choices, figures = cluster_suite.CHOICES, cluster_suite.figures
    unknown = [name for name in only if name not in choices]
    if unknown:
        raise InvalidInput.at("/only", f"{unknown[0]!r} is not one of {', '.join(choices)}")
    machine = suite.Machine.here()
    with watch("measuring") as tell:

        def each(figure: Figure) -> None:
            tell(f"{figure.name}: {figure.value:,.3f} {figure.unit}")

        found = suite.run(only, quick=quick, each=each, figures=figures)
    if json:
        document = {"machine": machine, "quick": quick, "cluster": cluster, "figures": found}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
        return 0
    title = f"{machine.cores} cores, Python {machine.python}, load {machine.load:.1f} at the start"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("unit")
    table.add_column("target")
    table.add_column("note")
    for figure in found:
        value = (
            f"{figure.value:,.0f}"
            if figure.value >= 1000 or figure.unit in ("runs", "ticks")
            else f"{figure.value:.3f}"
        )
        table.add_row(figure.name, value, figure.unit, figure.target, figure.note)
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has none of its own
    console.print(table)
    return 0
