"""Pages of jobs and runs from a SQLite shard, by keyset, through the access path that fits the filters.

A page is merged from sources. Each is one stretch of one table or index, walked in the page's order from the cursor
on, and looks at no more than a budget of rows; `reach` says how far it has looked. What lies beyond the nearest
reach is left to the next page: a page may be short, even empty, and still have a `next`.

    runs   history by job · rare states · late · time      hot by job · active · late · on time + moved
    jobs   by label · name · rare state · running · other namespace · id · name order
"""

# ruff: noqa: S608 - statements are put together from this module's own pieces; every value is a parameter

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import apsw

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

Params = dict[str, Any]


# -- runs ---------------------------------------------------------------------------------------------------

# `:top`/`:low` bound a walk by (scheduled, job); `:from`/`:to` bound scheduled alone, within one job.
_BY_JOB = "job = :job and scheduled >= :from and scheduled < :to"
_BY_TIME = "(scheduled, job) > (:low, :low_job) and (scheduled, job) < (:top, :top_job)"
_BY_DUE = "(due, job) > (:low, :low_job) and (due, job) < (:top, :top_job)"


def _history_in_state(state: RunState) -> Source:
    return Source(f"history indexed by history_state where state = {int(state)} and state <> 3 and {_BY_TIME}", True)


_SOURCES: Final = RunSources(
    history_of_job=Source(f"history indexed by history_job where {_BY_JOB}", True),
    history_late=Source(f"history indexed by history_late where late <> 0 and {_BY_TIME}", True),
    history_in_state=_history_in_state,
    history_in_time=Source(f"history where {_BY_TIME}", True),
    hot_of_job=Source(f"run indexed by run_key where {_BY_JOB}", False),
    hot_late=Source(f"run indexed by run_late where late <> 0 and {_BY_TIME}", False),
    # What the fleet holds is bounded by the fleet, so it is sorted rather than walked.
    hot_active=Source(f"run indexed by run_active where state <> 0 and {_BY_TIME}", False, budget=UNBOUNDED),
    hot_on_time=Source(f"run where due = scheduled and {_BY_DUE}", False, by_due=True),
    hot_moved=Source(f"run indexed by run_moved where due <> scheduled and {_BY_TIME}", False),
)


def _run_filters(query: RunQuery) -> str:
    filters = []
    if query.states:
        filters.append(f"state in ({', '.join(str(int(state)) for state in query.states)})")
    if query.late is not None:
        filters.append("late = :late")
    if query.worker is not None:
        filters.append("worker = :worker")
    if query.namespace is not None:
        filters.append("exists(select 1 from job j where j.id = job and j.namespace = :namespace)")
    return " and ".join(filters) or "true"


def page_runs(db: apsw.Connection, query: RunQuery) -> tuple[list[Run], str | None]:
    """One page of runs and the next cursor. Reads one snapshot if the caller holds a transaction."""
    limit = page_limit(query.limit)
    params = run_parameters(query)
    direction = "asc" if query.oldest_first else "desc"
    filters = _run_filters(query)
    found: list[tuple[RunPosition, Run]] = []
    reaches: list[RunPosition] = []
    for source in _SOURCES.answering(query):
        rows, reach = _walk_runs(db, source, filters, direction, params)
        found += rows
        if reach is not None:
            reaches.append(reach)
    page, position = merge(found, reaches, limit, descending=not query.oldest_first)
    return page, None if position is None else run_cursor(position)


def _walk_runs(
    db: apsw.Connection, source: Source, filters: str, direction: str, params: Params
) -> tuple[list[tuple[RunPosition, Run]], RunPosition | None]:
    order = f"order by {'due' if source.by_due else 'scheduled'} {direction}, job {direction}"
    columns = "scheduled, job, state, late, worker" if source.finished else "scheduled, job, state, late, worker, due"
    # The documents are fetched for the rows that are shown only: hence the join with the same table.
    if source.finished:
        sql = (
            f"select w.scheduled, w.job, d.doc from (select * from (select {columns} from {source.walk} {order}"
            f" limit :budget) where {filters} limit :n) w"
            " cross join history d on d.scheduled = w.scheduled and d.job = w.job"
        )
    else:
        sql = (
            "select w.scheduled, w.job, d.due, d.state, d.attempt, d.worker, d.dispatched, d.doc"
            f" from (select * from (select {columns} from {source.walk} {order} limit :budget)"
            f" where {filters} limit :n) w"
            " cross join run d on d.due = w.due and d.job = w.job and d.scheduled = w.scheduled"
        )
    make: Callable[..., Run] = to_finished_run if source.finished else to_run
    params = params | {"budget": source.budget}
    rows = [((scheduled, job), make(*rest)) for scheduled, job, *rest in db.execute(sql, params)]
    if len(rows) == params["n"]:
        return rows, rows[-1][0]
    end = f"select scheduled, job from {source.walk} {order} limit 1 offset :budget - 1"
    reach: RunPosition | None = next(iter(db.execute(end, params)), None)
    return rows, reach


# -- jobs ---------------------------------------------------------------------------------------------------

_JOB_COLUMNS = "id, namespace, name, state, kind, schedule"
_RUNNING = "select job from run indexed by run_active where state <> 0 and state = 2"


def _job_walk(query: JobQuery, bound: str) -> tuple[str, int]:
    """FROM and WHERE of the rows to look at, and the budget."""
    by_name = query.order in ("name", "-name")
    if query.running:
        return f"job where id in ({_RUNNING}) and {bound}", UNBOUNDED
    if query.name is not None:
        return f"job indexed by job_name where name = :name and {bound}", BUDGET
    if by_name:
        return f"job indexed by job_name where {bound}", BUDGET
    if query.labels:
        return f"label l cross join job on job.id = l.job where l.key = :key0 and l.value = :value0 and {bound}", BUDGET
    if query.state in ("paused", "deleted"):
        return f"job indexed by job_state where state = :state and state <> 'active' and {bound}", BUDGET
    if query.namespace not in (None, "default"):
        walk = f"job indexed by job_namespace where namespace = :namespace and namespace <> 'default' and {bound}"
        return walk, BUDGET
    return f"job where {bound}", BUDGET


def _job_filters(query: JobQuery) -> tuple[str, Params]:
    filters = ["true"]
    params: Params = {}
    for column, value in (
        ("namespace", query.namespace),
        ("name", query.name),
        ("kind", query.task),
        ("schedule", query.schedule),
    ):
        if value is not None:
            filters.append(f"{column} = :{column}")
            params[column] = value
    if query.state is not None:
        filters.append("state = :state")
        params["state"] = "active" if query.state == "completed" else query.state
    if not query.with_deleted:
        filters.append("state <> 'deleted'")
    if query.state in ("active", "completed"):
        negation = "not " if query.state == "completed" else ""
        filters.append(f"{negation}exists(select 1 from run r where r.job = id)")
    if query.q:
        filters.append("(instr(lower(name), :q) or instr(id, :q))")
        params["q"] = query.q.lower()
    for i, (key, value) in enumerate(query.labels):
        filters.append(f"exists(select 1 from label where key = :key{i} and value = :value{i} and job = id)")
        params |= {f"key{i}": key, f"value{i}": value}
    return " and ".join(filters), params


def page_jobs(db: apsw.Connection, query: JobQuery) -> tuple[list[str], str | None]:
    """The ids of one page of jobs and the next cursor."""
    limit = page_limit(query.limit)
    by_name = query.order in ("name", "-name")
    descending = query.order.startswith("-")
    filters, params = _job_filters(query)
    id_column = "l.job" if query.labels and not (query.running or query.name is not None or by_name) else "id"
    bound = "true"
    beyond = "<" if descending else ">"
    if query.cursor is not None:
        position = job_position(query.cursor, by_name=by_name)
        params["at"] = position[-1]
        bound = f"{id_column} {beyond} :at"
        if by_name:
            params["at_name"] = position[0]
            bound = f"(name, id) {beyond} (:at_name, :at)"
    direction = "desc" if descending else "asc"
    order = f"order by name {direction}, id {direction}" if by_name else f"order by {id_column} {direction}"
    walk, budget = _job_walk(query, bound)
    sql = f"select name, id from (select {_JOB_COLUMNS} from {walk} {order} limit :budget) where {filters} limit :n"
    params |= {"budget": budget, "n": limit + 1}
    rows = list(db.execute(sql, params))
    found: list[tuple[JobPosition, str]] = [((name, key) if by_name else (key,), key) for name, key in rows]
    reaches: list[JobPosition] = []
    if len(found) > limit:
        reaches.append(found[-1][0])
    else:
        for name, key in db.execute(f"select name, id from {walk} {order} limit 1 offset :budget - 1", params):
            reaches.append((name, key) if by_name else (key,))
    page, next_position = merge(found, reaches, limit, descending=descending)
    return page, None if next_position is None else job_cursor(next_position)
