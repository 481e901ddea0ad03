"""How often Python looks for garbage in cycles, in a process that is duly's or that has duly in it (decision 0030)."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (100_000, 20, 20)
CHOSEN: Final = 10_000  # a first threshold from here on was somebody's choice: Python's own are 700 to 2,000


def look_less_often() -> None:
    """Raise the collector's thresholds, unless the program has turned it off or has chosen high ones itself.

    What comes and goes with a run dies by its reference count. Under Python's own thresholds the collector looked
    through all that was under way whenever 700 more objects were.
    """
    if gc.isenabled() and gc.get_threshold()[0] < CHOSEN:
        gc.set_threshold(*THRESHOLDS)
