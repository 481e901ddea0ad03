"""Pages of jobs and runs from a PostgreSQL shard, by keyset, through the access path that fits the filters.

A page is merged from sources. Each is one stretch of one table or index, walked in the page's order from the cursor
on, and looks at no more than a budget of rows; `reach` says how far it has looked. What lies beyond the nearest
reach is left to the next page: a page may be short, even empty, and still have a `next`.

    runs   history by job · rare states · late · time      hot by job · held · late · on time + moved
    jobs   by label · name · rare state · running · other namespace · id · name order

All sources of a page are read in one transaction, whose local settings forbid what would read a whole table or sort
it: the plan is a walk along an index, whatever the statistics say.
"""

# ruff: noqa: S608 - statements are put together from this module's own pieces; every value is a parameter

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import asyncpg

from duly.adapters.rows import to_finished_run, to_run
from duly.adapters.run_sources import BUDGET, UNBOUNDED, RunSources, Source, run_parameters
from duly.core.model import Run, RunState
from duly.core.paging import (
    JobPosition,
    RunPosition,
    job_cursor,
    job_position,
    merge,
    page_limit,
    run_cursor,
)
from duly.ports import JobQuery, RunQuery

BEGIN: Final = """
begin isolation level repeatable read, read only; set local idle_in_transaction_session_timeout = '15s';
set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_hashjoin = off;
set local enable_mergejoin = off; set local enable_sort = off; set local jit = off;
"""


class _Values:
    """The parameters of one statement, numbered as they are first used."""

    def __init__(self, **values: object) -> None:
        self._values = values
        self._used: list[str] = []

    def __getitem__(self, name: str) -> str:
        if name not in self._used:
            self._used.append(name)
        return f"${self._used.index(name) + 1}"

    def fill(self, text: str) -> str:
        """The statement: each :name becomes a number."""
        pieces = text.split("\0")
        return "".join(self[piece] if i % 2 else piece for i, piece in enumerate(pieces))

    @property
    def args(self) -> list[object]:
        """In the order of their numbers."""
        return [self._values[name] for name in self._used]


def _p(name: str) -> str:
    """A parameter, to be numbered by `_Values.fill`."""
    return f"\0{name}\0"


# -- runs ---------------------------------------------------------------------------------------------------

# top/low bound a walk by (scheduled, job); from/to bound scheduled alone, within one job.
_BY_JOB: Final = f"job = {_p('job')} and scheduled >= {_p('from')} and scheduled < {_p('to')}"


def _between(column: str, job: str = "job") -> str:
    low, top = f"({_p('low')}, {_p('low_job')})", f"({_p('top')}, {_p('top_job')})"
    return f"({column}, {job}) > {low} and ({column}, {job}) < {top}"


def _history_in_state(state: RunState) -> Source:
    return Source(f"duly.history where state = {int(state)} and state <> 3 and {_between('scheduled')}", True)


_SOURCES: Final = RunSources(
    history_of_job=Source(f"duly.history where {_BY_JOB}", True),
    history_late=Source(f"duly.history where late and {_between('scheduled')}", True),
    history_in_state=_history_in_state,
    history_in_time=Source(f"duly.history where {_between('scheduled')}", True),
    hot_of_job=Source(f"duly.run where {_BY_JOB}", False),
    hot_late=Source(f"duly.run where late and {_between('scheduled')}", False),
    # What the fleet holds is bounded by the fleet, so it is sorted rather than walked.
    hot_active=Source(
        f"(select r.* from duly.held h join duly.run r using (job, scheduled)) held where {_between('scheduled')}",
        False,
        budget=UNBOUNDED,
    ),
    hot_on_time=Source(f"duly.run where due = scheduled and {_between('due')}", False, by_due=True),
    hot_moved=Source(f"duly.run where due <> scheduled and {_between('scheduled')}", False),
)


def _run_filters(query: RunQuery) -> str:
    filters = []
    if query.states:
        filters.append(f"state in ({', '.join(str(int(state)) for state in query.states)})")
    if query.late is not None:
        filters.append(f"late = {_p('late')}")
    if query.worker is not None:
        filters.append(f"worker = {_p('worker')}")
    if query.namespace is not None:
        filters.append(f"exists (select from duly.job j where j.id = job and j.namespace = {_p('namespace')})")
    return " and ".join(filters) or "true"


async def page_runs(db: asyncpg.Connection, query: RunQuery) -> tuple[list[Run], str | None]:
    """One page of runs and the next cursor, inside a transaction that `BEGIN` began."""
    limit = page_limit(query.limit)
    values = run_parameters(query)
    direction = "asc" if query.oldest_first else "desc"
    found: list[tuple[RunPosition, Run]] = []
    reaches: list[RunPosition] = []
    for source in _SOURCES.answering(query):
        rows, reach = await _walk_runs(db, source, _run_filters(query), direction, values)
        found += rows
        if reach is not None:
            reaches.append(reach)
    page, position = merge(found, reaches, limit, descending=not query.oldest_first)
    return page, None if position is None else run_cursor(position)


async def _walk_runs(
    db: asyncpg.Connection, source: Source, filters: str, direction: str, values: dict[str, Any]
) -> tuple[list[tuple[RunPosition, Run]], RunPosition | None]:
    order = f"order by {'due' if source.by_due else 'scheduled'} {direction}, job {direction}"
    rest = "doc" if source.finished else "due, state, attempt, worker, dispatched, doc"
    make: Callable[..., Run] = to_finished_run if source.finished else to_run
    values = values | {"budget": source.budget, "last": source.budget - 1}
    rows = [
        ((scheduled, job), make(*columns))
        for scheduled, job, *columns in await _fetch(
            db,
            f"select scheduled, job, {rest} from (select * from {source.walk} {order} limit {_p('budget')}) w"
            f" where {filters} limit {_p('n')}",
            values,
        )
    ]
    if len(rows) == values["n"]:
        return rows, rows[-1][0]
    if source.budget == UNBOUNDED:
        return rows, None
    end = f"select scheduled, job from {source.walk} {order} limit 1 offset {_p('last')}"
    found = await _fetch(db, end, values)
    return rows, (found[0][0], found[0][1]) if found else None


async def _fetch(db: asyncpg.Connection, text: str, values: dict[str, Any]) -> list[Any]:
    numbered = _Values(**values)
    sql = numbered.fill(text)
    return list(await db.fetch(sql, *numbered.args))


# -- jobs ---------------------------------------------------------------------------------------------------

_RUNNING: Final = "select r.job from duly.held h join duly.run r using (job, scheduled) where r.state = 2"


def _job_walk(query: JobQuery, bound: str) -> tuple[str, int]:
    """FROM and WHERE of the rows to look at, and the budget."""
    by_name = query.order in ("name", "-name")
    if query.running:
        return f"duly.job j where id in ({_RUNNING}) and {bound}", UNBOUNDED
    if query.name is not None:
        return f"duly.job j where name = {_p('name')} and {bound}", BUDGET
    if by_name:
        return f"duly.job j where {bound}", BUDGET
    if query.labels:
        labelled = f"l.key = {_p('key0')} and l.value = {_p('value0')}"
        return f"duly.label l join duly.job j on j.id = l.job where {labelled} and {bound}", BUDGET
    if query.state in ("paused", "deleted"):
        return f"duly.job j where state = {_p('state')} and state <> 'active' and {bound}", BUDGET
    if query.namespace not in (None, "default"):
        return f"duly.job j where namespace = {_p('namespace')} and namespace <> 'default' and {bound}", BUDGET
    return f"duly.job j where {bound}", BUDGET


def _job_filters(query: JobQuery) -> tuple[str, dict[str, Any]]:
    filters = ["true"]
    values: dict[str, Any] = {}
    for column, value in (
        ("namespace", query.namespace),
        ("name", query.name),
        ("kind", query.task),
        ("schedule", query.schedule),
    ):
        if value is not None:
            filters.append(f"{column} = {_p(column)}")
            values[column] = value
    if query.state is not None:
        filters.append(f"state = {_p('state')}")
        values["state"] = "active" if query.state == "completed" else query.state
    if not query.with_deleted:
        filters.append("state <> 'deleted'")
    if query.state in ("active", "completed"):
        negation = "not " if query.state == "completed" else ""
        filters.append(f"{negation}exists (select from duly.run r where r.job = id)")
    if query.q:
        filters.append(f"(position({_p('q')} in lower(name)) > 0 or position({_p('q')} in id) > 0)")
        values["q"] = query.q.lower()
    for i, (key, value) in enumerate(query.labels):
        key_is, value_is = f"key = {_p(f'key{i}')}", f"value = {_p(f'value{i}')}"
        filters.append(f"exists (select from duly.label where {key_is} and {value_is} and job = id)")
        values |= {f"key{i}": key, f"value{i}": value}
    return " and ".join(filters), values


async def page_jobs(db: asyncpg.Connection, query: JobQuery) -> tuple[list[str], str | None]:
    """The ids of one page of jobs and the next cursor, inside a transaction that `BEGIN` began."""
    limit = page_limit(query.limit)
    by_name = query.order in ("name", "-name")
    descending = query.order.startswith("-")
    filters, values = _job_filters(query)
    id_column = "l.job" if query.labels and not (query.running or query.name is not None or by_name) else "j.id"
    bound = "true"
    beyond = "<" if descending else ">"
    if query.cursor is not None:
        position = job_position(query.cursor, by_name=by_name)
        values["at"] = position[-1]
        bound = f"{id_column} {beyond} {_p('at')}"
        if by_name:
            values["at_name"] = position[0]
            bound = f"(name, id) {beyond} ({_p('at_name')}, {_p('at')})"
    direction = "desc" if descending else "asc"
    order = f"order by name {direction}, id {direction}" if by_name else f"order by {id_column} {direction}"
    walk, budget = _job_walk(query, bound)
    values |= {"budget": budget, "last": budget - 1, "n": limit + 1}
    rows = await _fetch(
        db,
        f"select name, id from (select j.* from {walk} {order} limit {_p('budget')}) w where {filters} limit {_p('n')}",
        values,
    )
    found: list[tuple[JobPosition, str]] = [((name, key) if by_name else (key,), key) for name, key in rows]
    reaches: list[JobPosition] = []
    if len(found) > limit:
        reaches.append(found[-1][0])
    elif budget != UNBOUNDED:
        end = f"select name, id from {walk} {order} limit 1 offset {_p('last')}"
        reaches += [(name, key) if by_name else (key,) for name, key in await _fetch(db, end, values)]
    page, next_position = merge(found, reaches, limit, descending=descending)
    return page, None if next_position is None else job_cursor(next_position)
