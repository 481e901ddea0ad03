"""Which parts of a store answer a query of runs, and between which bounds: the same for every SQL.

runs that have ended   of a job · late ones · those in rare states · all, by time
runs that have not     of a job · late ones · those that workers hold · all: on time, and moved
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from duly.core.model import RunState
from duly.core.paging import RunPosition, page_limit, run_position
from duly.ports import RunQuery

BUDGET: Final = (
    50_000  # rows that one source may pass over for one page: about 50 ms, several times that from a cold disk
)
UNBOUNDED: Final = 2**31

_FIRST: Final = (-(2**63), "")
_LAST: Final = (2**63 - 1, "\U0010ffff")


class Source(NamedTuple):
    """A stretch to walk. `walk` is the FROM and WHERE of its rows; `finished` ones are whole documents."""

    walk: str
    finished: bool
    by_due: bool = False
    budget: int = BUDGET


class RunSources(NamedTuple):
    """Every source that a store has: `history` for runs that have ended, `hot` for the others."""

    history_of_job: Source
    history_late: Source
    history_in_state: Callable[[RunState], Source]
    history_in_time: Source
    hot_of_job: Source
    hot_late: Source
    hot_active: Source  # those that workers hold
    hot_on_time: Source
    hot_moved: Source  # due at another time than scheduled

    def answering(self, query: RunQuery) -> list[Source]:
        """Those that hold every run that the query asks for."""
        ended = [state for state in query.states if state.terminal]
        hot = [state for state in query.states if not state.terminal]
        with_ended, with_hot = bool(ended or not hot), bool(hot or not ended)
        if query.job_id is not None:
            return [self.history_of_job] * with_ended + [self.hot_of_job] * with_hot
        sources = []
        if with_ended and query.late:
            sources.append(self.history_late)
        elif with_ended and ended and RunState.SUCCEEDED not in ended:
            sources += [self.history_in_state(state) for state in set(ended)]
        elif with_ended:
            sources.append(self.history_in_time)
        if with_hot and query.late:
            sources.append(self.hot_late)
        elif with_hot and (query.worker or (hot and RunState.WAITING not in hot)):
            sources.append(self.hot_active)
        elif with_hot:
            sources += [self.hot_on_time, self.hot_moved]
        return sources


def run_parameters(query: RunQuery) -> dict[str, Any]:
    """What the statements are filled with: `low` and `top` bound (scheduled, job), `n` is one row more than the page.

    `from` and `to` bound scheduled alone, for the runs of one `job`. Raises Malformed for a cursor of anything else.
    """
    at = None if query.cursor is None else run_position(query.cursor)
    low: RunPosition = _FIRST if query.since is None else (query.since, "")
    top: RunPosition = _LAST if query.until is None else (query.until, "")
    if at is not None and query.oldest_first:
        low = max(low, at)
    elif at is not None:
        top = min(top, at)
    parameters: dict[str, Any] = {
        "low": low[0],
        "low_job": low[1],
        "top": top[0],
        "top_job": top[1],
        "late": query.late,
        "worker": query.worker,
        "namespace": query.namespace,
        "n": page_limit(query.limit) + 1,
    }
    if query.job_id is not None:
        parameters |= {
            "job": query.job_id,
            "from": low[0] + (low[1] >= query.job_id),
            "to": top[0] + (query.job_id < top[1]) if top != _LAST else _LAST[0],
        }
    return parameters
