"""The last look before a run begins, where the shard's clock is this machine's own: has it shown the instant?

Runs wait by CLOCK_MONOTONIC, to which their instant was converted when they were staged. Virtual machines correct
their clock in steps of some microseconds: one that is set back meanwhile would have everything begin early that is
staged, by its task's own clock. So whoever starts a run asks the clock too, and waits for what is left.
"""

from __future__ import annotations

import time

from duly.core.steps import TOLERANCE


def short_of(due_at: int) -> int:
    """µs until this machine's clock shows `due_at`, else 0.

    Also 0 if it is more than `TOLERANCE` away: then somebody has set the clock, and what was staged for an instant
    of the clock before is not held back until it comes round again (decision 0011).
    """
    left = due_at - time.time_ns() // 1_000
    return left if 0 < left <= TOLERANCE else 0
