-- What is done in one round trip and one commit, whole. Each function is its own transaction when it is called alone.
--
-- Why functions: a volatile function sees, statement by statement, what others have committed meanwhile, which is what
-- `open_runs` needs; their plans are kept by the server, whatever pooler stands between; and the settings below make
-- the plans independent of statistics, which are wrong exactly when a table has just been filled. Every look-up goes
-- through an index, in the order of the arrays. A function that has been released is never changed: a new one, with
-- another number, is made by a later migration, and the old one stays for the nodes that still call it.
--
-- Order of locks, the same for all: slot map, term, jobs by id, runs by (job, scheduled), tallies.

-- The shard's clock: µs UTC.
create function duly.clock() returns bigint
language sql volatile parallel safe
as $$ select (extract(epoch from clock_timestamp()) * 1000000)::bigint $$;

-- Adds to the tallies. A session uses one stripe, so that sessions do not wait for each other.
create function duly.count_1(kinds smallint[], ns bigint[]) returns void
language sql volatile
set search_path = duly, pg_temp
as $$
  insert into tally as t
  select u.kind, pg_backend_pid() % 64, sum(u.n) from unnest(kinds, ns) u(kind, n)
   group by u.kind having sum(u.n) <> 0 order by u.kind
  on conflict (kind, stripe) do update set n = t.n + excluded.n
$$;

-- Opens runs, unless they exist, finished ones included; returns how many of each state, as two parallel arrays.
-- Whoever brings a run into being first holds its key in `run`, then looks at history by a later snapshot: the insert
-- may have waited for the very transaction that moved the run there.
create function duly.open_runs_1(
  jobs text[], scheduled_ats bigint[], dues bigint[], states smallint[], attempts integer[], workers text[],
  dispatched_ats bigint[], manuals boolean[], versions bigint[], lates boolean[], cancels boolean[], docs text[]
) returns void
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  new_jobs text[]; new_scheduled bigint[]; kinds smallint[]; gone smallint[];
begin
  with put as (
    insert into run
    select * from unnest(jobs, scheduled_ats, dues, states, attempts, workers, dispatched_ats, manuals, versions, lates,
                         cancels, docs)
    on conflict do nothing
    returning job, scheduled, state
  ), out as (
    insert into held select job, scheduled from put where state <> 0
  )
  select array_agg(job), array_agg(scheduled), array_agg(state) into new_jobs, new_scheduled, kinds from put;
  if new_jobs is null then
    return;
  end if;
  with back as (
    delete from run r using unnest(new_jobs, new_scheduled) k(job, scheduled)
     where r.job = k.job and r.scheduled = k.scheduled
       and exists (select from history h where h.job = k.job and h.scheduled = k.scheduled)
    returning r.job, r.scheduled, r.state
  ), let_go as (
    delete from held h using back b where b.state <> 0 and h.job = b.job and h.scheduled = b.scheduled
  )
  select array_agg(state) into gone from back;
  perform count_1(kinds || coalesce(gone, '{}'),
                  array_fill(1::bigint, array[cardinality(kinds)])
                  || array_fill(-1::bigint, array[coalesce(cardinality(gone), 0)]));
end $$;

-- Puts runs that have ended already (missed occurrences) into history, unless they exist.
create function duly.record_runs_1(
  jobs text[], scheduled_ats bigint[], states smallint[], started boolean[], lates boolean[], workers text[],
  finished_ats bigint[], docs text[]
) returns void
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  new_jobs text[]; new_scheduled bigint[]; kinds smallint[];
begin
  -- They hold their keys in `run` for a moment, as every run that comes into being does.
  with put as (
    insert into run
    select r.job, r.scheduled, r.scheduled, r.state, 0, r.worker, r.finished, r.started, 0, r.late, false, r.doc
      from unnest(jobs, scheduled_ats, states, started, lates, workers, finished_ats, docs)
           r(job, scheduled, state, started, late, worker, finished, doc)
    on conflict do nothing
    returning job, scheduled
  )
  select array_agg(job), array_agg(scheduled) into new_jobs, new_scheduled from put;
  if new_jobs is null then
    return;
  end if;
  with taken as (
    delete from run r using unnest(new_jobs, new_scheduled) k(job, scheduled)
     where r.job = k.job and r.scheduled = k.scheduled
    returning r.*
  ), filed as (
    insert into history
    select job, scheduled, state, manual, late, worker, dispatched, doc from taken
    on conflict do nothing
    returning state
  )
  select array_agg(state) into kinds from filed;
  if kinds is not null then
    perform count_1(kinds, array_fill(1::bigint, array[cardinality(kinds)]));
  end if;
end $$;

-- Writes new jobs with their first runs; returns the ids of those that were written, the others exist.
-- `known_epoch` is that of the slot map by which the caller judged that the jobs are this shard's. Raises DU003 if another
-- is in force, which cannot be replaced then before this is committed.
create function duly.create_jobs_1(
  known_epoch bigint,
  ids text[], namespaces text[], names text[], states text[], kinds text[], schedules text[], versions bigint[],
  keep_runs bigint[], keep_ages bigint[], docs text[],
  label_keys text[], label_values text[], label_jobs text[],
  ref_digests text[], ref_jobs text[], ref_scheduled bigint[],
  past_digests text[], past_jobs text[], past_scheduled bigint[],
  run_jobs text[], run_scheduled bigint[], run_dues bigint[], run_states smallint[], run_attempts integer[],
  run_workers text[], run_dispatched bigint[], run_manuals boolean[], run_versions bigint[], run_lates boolean[],
  run_cancels boolean[], run_docs text[],
  past_run_jobs text[], past_run_scheduled bigint[], past_run_states smallint[], past_run_started boolean[],
  past_run_lates boolean[], past_run_workers text[], past_run_finished bigint[], past_run_docs text[]
) returns text[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
set lock_timeout = '10s'
as $$
declare
  fresh text[]; whole boolean; counted smallint[]; past smallint[]; live bigint;
begin
  perform from slot_map where id = 1 and epoch = known_epoch for share;
  if not found then
    raise exception 'another slot map is in force' using errcode = 'DU003';
  end if;
  with put as (
    insert into job
    select * from unnest(ids, namespaces, names, states, kinds, schedules, versions, keep_runs, keep_ages, docs)
    on conflict do nothing
    returning id, state
  )
  select array_agg(id), count(*) filter (where state <> 'deleted') into fresh, live from put;
  if fresh is null then
    return '{}';
  end if;
  whole := cardinality(fresh) = cardinality(ids);
  if cardinality(label_jobs) > 0 then
    insert into label
    select l.key, l.value, l.job from unnest(label_keys, label_values, label_jobs) l(key, value, job)
     where whole or l.job = any(fresh);
  end if;
  if cardinality(ref_jobs) > 0 then
    insert into blob_ref
    select r.digest, r.job, r.scheduled from unnest(ref_digests, ref_jobs, ref_scheduled) r(digest, job, scheduled)
     where whole or r.job = any(fresh)
    on conflict do nothing;
  end if;
  if cardinality(past_jobs) > 0 then
    insert into history_ref
    select r.digest, r.job, r.scheduled from unnest(past_digests, past_jobs, past_scheduled) r(digest, job, scheduled)
     where whole or r.job = any(fresh)
    on conflict do nothing;
  end if;
  -- A job that is new in this transaction has no history that its runs could be in.
  with put as (
    insert into run
    select r.* from unnest(run_jobs, run_scheduled, run_dues, run_states, run_attempts, run_workers, run_dispatched,
                           run_manuals, run_versions, run_lates, run_cancels, run_docs)
                    r(job, scheduled, due, state, attempt, worker, dispatched, manual, version, late, cancelled, doc)
     where whole or r.job = any(fresh)
    on conflict do nothing
    returning job, scheduled, state
  ), out as (
    insert into held select job, scheduled from put where state <> 0
  )
  select array_agg(state) into counted from put;
  if cardinality(past_run_jobs) > 0 then
    with put as (
      insert into history
      select r.* from unnest(past_run_jobs, past_run_scheduled, past_run_states, past_run_started, past_run_lates,
                             past_run_workers, past_run_finished, past_run_docs)
                      r(job, scheduled, state, started, late, worker, finished, doc)
       where whole or r.job = any(fresh)
      on conflict do nothing
      returning state
    )
    select array_agg(state) into past from put;
  end if;
  counted := coalesce(counted, '{}') || coalesce(past, '{}');
  perform count_1(counted || (-1)::smallint, array_fill(1::bigint, array[cardinality(counted)]) || live);
  return fresh;
end $$;

-- Carries out transitions of distinct runs; `i` names each in the caller's list. Returns those that lost.
-- What is compared: the run's state, attempt and worker; its version while it waits, since one that a change of its job
-- has replaced is another run; whether a cancel was noted (null: not compared); and the version of the job, where the
-- decision was made on it (job_*). Raises DU001 if the fence is not the one in force.
create function duly.apply_runs_1(
  in_force bigint,
  job_i integer[], job_ids text[], job_versions bigint[],
  move_i integer[], move_jobs text[], move_scheduled bigint[], move_was_states smallint[], move_was_attempts integer[],
  move_was_workers text[], move_was_versions bigint[], move_was_cancelled boolean[], move_states smallint[],
  move_attempts integer[], move_workers text[], move_dispatched bigint[], move_dues bigint[], move_versions bigint[],
  move_lates boolean[], move_cancels boolean[], move_docs text[],
  end_i integer[], end_jobs text[], end_scheduled bigint[], end_was_states smallint[], end_was_attempts integer[],
  end_was_workers text[], end_was_versions bigint[], end_was_cancelled boolean[], end_states smallint[],
  end_started boolean[], end_lates boolean[], end_workers text[], end_finished bigint[], end_docs text[],
  ref_i integer[], ref_digests text[], ref_jobs text[], ref_scheduled bigint[],
  past_i integer[], past_digests text[], past_jobs text[], past_scheduled bigint[],
  open_i integer[], open_jobs text[], open_scheduled bigint[], open_dues bigint[], open_states smallint[],
  open_attempts integer[], open_workers text[], open_dispatched bigint[], open_manuals boolean[],
  open_versions bigint[], open_lates boolean[], open_cancels boolean[], open_docs text[],
  rec_i integer[], rec_jobs text[], rec_scheduled bigint[], rec_states smallint[], rec_started boolean[],
  rec_lates boolean[], rec_workers text[], rec_finished bigint[], rec_docs text[]
) returns integer[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
set lock_timeout = '10s'
as $$
declare
  stale integer[] := '{}'; losers integer[] := '{}';
  moved integer[] := '{}'; moved_was smallint[] := '{}'; moved_to smallint[] := '{}';
  ended integer[] := '{}'; ended_was smallint[] := '{}'; ended_to smallint[] := '{}';
begin
  if in_force is not null then
    -- A takeover that has not been committed is waited for, and then wins.
    perform from term where id = 1 and fence = in_force for share;
    if not found then
      raise exception 'the term has another fence' using errcode = 'DU001';
    end if;
  end if;
  if cardinality(job_i) > 0 then
    -- Kept from changing until the commit: a change of the job sees what this does, or this sees the change.
    with same as (
      select w.i from unnest(job_i, job_ids, job_versions) w(i, id, version)
        join job j on j.id = w.id and j.version = w.version
         for share of j
    )
    select coalesce(array_agg(i), '{}') into stale from (select unnest(job_i) except select i from same) other(i);
  end if;
  if cardinality(move_i) > 0 then
    with won as (
      update run r
         set state = x.state, attempt = x.attempt, worker = x.worker, dispatched = x.dispatched,
             due = coalesce(x.due, r.due), version = coalesce(x.version, r.version), late = coalesce(x.late, r.late),
             cancelled = coalesce(x.cancelled, r.cancelled), doc = coalesce(x.doc, r.doc)
        from unnest(move_i, move_jobs, move_scheduled, move_was_states, move_was_attempts, move_was_workers,
                    move_was_versions, move_was_cancelled, move_states, move_attempts, move_workers, move_dispatched,
                    move_dues, move_versions, move_lates, move_cancels, move_docs)
             x(i, job, scheduled, was_state, was_attempt, was_worker, was_version, was_cancelled, state, attempt,
               worker, dispatched, due, version, late, cancelled, doc)
       where r.job = x.job and r.scheduled = x.scheduled
         and r.state = x.was_state and r.attempt = x.was_attempt and r.worker = x.was_worker
         and (r.state <> 0 or r.version = x.was_version) and r.cancelled = coalesce(x.was_cancelled, r.cancelled)
         and x.i <> all (stale)
      returning x.i, r.job, r.scheduled, x.was_state, r.state
    ), taken_up as (
      insert into held select job, scheduled from won where was_state = 0 and state <> 0
    ), let_go as (
      delete from held h using won w
       where w.was_state <> 0 and w.state = 0 and h.job = w.job and h.scheduled = w.scheduled
    )
    select coalesce(array_agg(i), '{}'), coalesce(array_agg(was_state), '{}'), coalesce(array_agg(state), '{}')
      into moved, moved_was, moved_to from won;
  end if;
  if cardinality(end_i) > 0 then
    -- The rows that leave are the rows that history gets, so that a loser leaves no trace.
    with won as (
      delete from run r
       using unnest(end_i, end_jobs, end_scheduled, end_was_states, end_was_attempts, end_was_workers,
                    end_was_versions, end_was_cancelled, end_states, end_started, end_lates, end_workers, end_finished,
                    end_docs)
             x(i, job, scheduled, was_state, was_attempt, was_worker, was_version, was_cancelled, state, started, late,
               worker, finished, doc)
       where r.job = x.job and r.scheduled = x.scheduled
         and r.state = x.was_state and r.attempt = x.was_attempt and r.worker = x.was_worker
         and (r.state <> 0 or r.version = x.was_version) and r.cancelled = coalesce(x.was_cancelled, r.cancelled)
         and x.i <> all (stale)
      returning x.i, x.job, x.scheduled, x.was_state, x.state, x.started, x.late, x.worker, x.finished, x.doc
    ), filed as (
      insert into history select job, scheduled, state, started, late, worker, finished, doc from won
      on conflict do nothing
    ), let_go as (
      delete from held h using won w where w.was_state <> 0 and h.job = w.job and h.scheduled = w.scheduled
    )
    select coalesce(array_agg(i), '{}'), coalesce(array_agg(was_state), '{}'), coalesce(array_agg(state), '{}')
      into ended, ended_was, ended_to from won;
  end if;
  if cardinality(moved) + cardinality(ended) < cardinality(move_i) + cardinality(end_i) then
    select array_agg(i) into losers
      from (select unnest(move_i || end_i) except select unnest(moved || ended)) lost(i);
  end if;
  if cardinality(ref_i) > 0 then
    insert into blob_ref
    select r.digest, r.job, r.scheduled from unnest(ref_i, ref_digests, ref_jobs, ref_scheduled)
           r(i, digest, job, scheduled)
     where r.i <> all (losers)
    on conflict do nothing;
  end if;
  if cardinality(past_i) > 0 then
    insert into history_ref
    select r.digest, r.job, r.scheduled from unnest(past_i, past_digests, past_jobs, past_scheduled)
           r(i, digest, job, scheduled)
     where r.i <> all (losers)
    on conflict do nothing;
  end if;
  if cardinality(past_i) > 0 or exists (select from unnest(end_was_attempts) was(attempt) where attempt > 1) then
    -- What a run referred to while it waited for another attempt goes with it into history.
    with moved as (
      delete from blob_ref b using unnest(end_i, end_jobs, end_scheduled) o(i, job, scheduled)
       where b.job = o.job and b.scheduled = o.scheduled and o.i <> all (losers)
      returning b.digest, b.job, b.scheduled
    )
    insert into history_ref select digest, job, scheduled from moved on conflict do nothing;
  end if;
  if cardinality(open_i) > 0 then
    if cardinality(losers) > 0 then
      perform open_runs_1(
        array_agg(x.job), array_agg(x.scheduled), array_agg(x.due), array_agg(x.state), array_agg(x.attempt),
        array_agg(x.worker), array_agg(x.dispatched), array_agg(x.manual), array_agg(x.version), array_agg(x.late),
        array_agg(x.cancelled), array_agg(x.doc))
      from unnest(open_i, open_jobs, open_scheduled, open_dues, open_states, open_attempts, open_workers,
                  open_dispatched, open_manuals, open_versions, open_lates, open_cancels, open_docs)
           x(i, job, scheduled, due, state, attempt, worker, dispatched, manual, version, late, cancelled, doc)
      where x.i <> all (losers);
    else
      perform open_runs_1(open_jobs, open_scheduled, open_dues, open_states, open_attempts, open_workers,
                          open_dispatched, open_manuals, open_versions, open_lates, open_cancels, open_docs);
    end if;
  end if;
  if cardinality(rec_i) > 0 then
    perform record_runs_1(
      array_agg(x.job), array_agg(x.scheduled), array_agg(x.state), array_agg(x.started), array_agg(x.late),
      array_agg(x.worker), array_agg(x.finished), array_agg(x.doc))
    from unnest(rec_i, rec_jobs, rec_scheduled, rec_states, rec_started, rec_lates, rec_workers, rec_finished, rec_docs)
         x(i, job, scheduled, state, started, late, worker, finished, doc)
    where x.i <> all (losers);
  end if;
  perform count_1(
    moved_was || ended_was || moved_to || ended_to,
    array_fill(-1::bigint, array[cardinality(moved) + cardinality(ended)])
    || array_fill(1::bigint, array[cardinality(moved) + cardinality(ended)]));
  return losers;
end $$;

-- Replaces a job and its waiting runs. The answer: null (another version, or no such job), or an array, empty if it was
-- written, else with the instant of the run that is in the way.
create function duly.change_job_1(
  p_id text, was_version bigint,
  p_namespace text, p_name text, p_state text, p_kind text, p_schedule text, p_version bigint, p_keep_runs bigint,
  p_keep_age bigint, p_doc text,
  label_keys text[], label_values text[], files text[],
  keep_waiting boolean, begun bigint[], unbegun bigint[],
  open_jobs text[], open_scheduled bigint[], open_dues bigint[], open_states smallint[], open_attempts integer[],
  open_workers text[], open_dispatched bigint[], open_manuals boolean[], open_versions bigint[], open_lates boolean[],
  open_cancels boolean[], open_docs text[],
  rec_scheduled bigint[], rec_states smallint[], rec_started boolean[], rec_lates boolean[], rec_workers text[],
  rec_finished bigint[], rec_docs text[],
  ref_digests text[], ref_scheduled bigint[], past_digests text[], past_scheduled bigint[]
) returns bigint[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
set lock_timeout = '10s'
as $$
declare
  was job%rowtype; seen bigint := -1; n bigint; at bigint; gone bigint[];
begin
  select * into was from job where id = p_id for update;
  if not found or was.version <> was_version then
    return null;
  end if;
  -- From here on no run of the job moves. Others may have opened runs while their rows were waited for: those are
  -- found the next time round. Who opens a run of this job holds another of its runs, or the job.
  loop
    select count(*) into n from (select from run where job = p_id order by scheduled for update) mine;
    exit when n = seen;
    seen := n;
  end loop;
  select min(o.scheduled) into at
    from (select unnest(open_scheduled) union all select unnest(rec_scheduled)) o(scheduled)
   where exists (select from run r where r.job = p_id and r.scheduled = o.scheduled and r.state <> 0)
      or exists (select from history h where h.job = p_id and h.scheduled = o.scheduled);
  if at is null and begun is not null then
    select min(x.scheduled) into at from (
      (select unnest(begun) except select scheduled from run r
        where job = p_id and (r.state <> 0 or attempt > 0) and not manual)
      union all
      (select scheduled from run r where job = p_id and (r.state <> 0 or attempt > 0) and not manual
       except select unnest(begun))
    ) x(scheduled);
  end if;
  if at is null and unbegun is not null then
    select min(x.scheduled) into at from (
      (select unnest(unbegun) except select scheduled from run r
        where job = p_id and r.state = 0 and attempt = 0 and not manual)
      union all
      (select scheduled from run r where job = p_id and r.state = 0 and attempt = 0 and not manual
       except select unnest(unbegun))
    ) x(scheduled);
  end if;
  if at is not null then
    return array[at];
  end if;
  update job
     set namespace = p_namespace, name = p_name, state = p_state, kind = p_kind, schedule = p_schedule,
         version = p_version, keep_runs = p_keep_runs, keep_age = p_keep_age, doc = p_doc
   where id = p_id;
  delete from label where job = p_id;
  insert into label select l.key, l.value, p_id from unnest(label_keys, label_values) l(key, value);
  with dropped as (
    delete from blob_ref where job = p_id and scheduled = -1 and digest <> all (files) returning digest
  )
  insert into orphan select digest from dropped on conflict do nothing;
  insert into blob_ref select f.digest, p_id, -1 from unnest(files) f(digest) on conflict do nothing;
  perform count_1(array[-1]::smallint[],
                  array[(p_state <> 'deleted')::integer - (was.state <> 'deleted')::integer]::bigint[]);
  if p_state = 'deleted' or not keep_waiting then
    with waiting as (
      delete from run where job = p_id and state = 0 and (p_state = 'deleted' or (attempt = 0 and not manual))
      returning scheduled
    )
    select array_agg(scheduled) into gone from waiting;
    if gone is not null then
      perform count_1(array[0]::smallint[], array[-cardinality(gone)]::bigint[]);
      with dropped as (
        delete from blob_ref where job = p_id and scheduled = any (gone) returning digest
      )
      insert into orphan select distinct digest from dropped on conflict do nothing;
    end if;
  end if;
  if cardinality(open_jobs) > 0 then
    perform open_runs_1(open_jobs, open_scheduled, open_dues, open_states, open_attempts, open_workers,
                        open_dispatched, open_manuals, open_versions, open_lates, open_cancels, open_docs);
  end if;
  if cardinality(rec_scheduled) > 0 then
    perform record_runs_1(array_fill(p_id, array[cardinality(rec_scheduled)]), rec_scheduled, rec_states, rec_started,
                          rec_lates, rec_workers, rec_finished, rec_docs);
  end if;
  insert into blob_ref select r.digest, p_id, r.scheduled from unnest(ref_digests, ref_scheduled) r(digest, scheduled)
  on conflict do nothing;
  insert into history_ref
  select r.digest, p_id, r.scheduled from unnest(past_digests, past_scheduled) r(digest, scheduled)
  on conflict do nothing;
  return '{}';
end $$;

-- Waiting runs in the order of their time, strictly after a position, with their jobs.
-- The row-value cursor matters: `due > after_due` alone skips the rest of a burst at the page's edge.
create function duly.due_runs_1(after_due bigint, after_job text, after_scheduled bigint, until bigint, most integer)
returns table(due bigint, state smallint, attempt integer, worker text, dispatched bigint, doc text, job_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  select r.due, r.state, r.attempt, r.worker::text, r.dispatched, r.doc, j.doc
    from run r join job j on j.id = r.job
   where (r.due, r.job, r.scheduled) > (after_due, after_job, after_scheduled) and r.due <= until and r.state = 0
   order by r.due, r.job, r.scheduled
   limit most;
end $$;

-- Runs that are out, by (job, scheduled), strictly after a position, with their jobs.
create function duly.active_runs_1(after_job text, after_scheduled bigint, most integer)
returns table(due bigint, state smallint, attempt integer, worker text, dispatched bigint, doc text, job_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  select r.due, r.state, r.attempt, r.worker::text, r.dispatched, r.doc, j.doc
    from held h join run r on r.job = h.job and r.scheduled = h.scheduled join job j on j.id = h.job
   where (h.job, h.scheduled) > (after_job, after_scheduled)
   order by h.job, h.scheduled
   limit most;
end $$;

-- Those of the runs that wait or are out; `i` is the place in the arrays.
create function duly.hot_runs_1(jobs text[], scheduled_ats bigint[])
returns table(i bigint, due bigint, state smallint, attempt integer, worker text, dispatched bigint, doc text,
              job_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  select k.i, r.due, r.state, r.attempt, r.worker::text, r.dispatched, r.doc, j.doc
    from unnest(jobs, scheduled_ats) with ordinality k(job, scheduled, i)
    join run r on r.job = k.job and r.scheduled = k.scheduled join job j on j.id = k.job;
end $$;

-- Those of the runs that have ended.
create function duly.finished_runs_1(jobs text[], scheduled_ats bigint[])
returns table(i bigint, doc text, job_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  select k.i, h.doc, j.doc
    from unnest(jobs, scheduled_ats) with ordinality k(job, scheduled, i)
    join history h on h.job = k.job and h.scheduled = k.scheduled join job j on j.id = k.job;
end $$;

-- Jobs with the earliest start that waits, whether any run is left, and the newest finished run that started.
create function duly.job_rows_1(ids text[])
returns table(i bigint, doc text, next_due bigint, unfinished boolean, last_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
  return query
  select k.i, j.doc,
         (select min(r.due) from run r where r.job = j.id and r.state = 0),
         exists (select from run r where r.job = j.id),
         (select h.doc from history h where h.job = j.id and h.started order by h.scheduled desc limit 1)
    from unnest(ids) with ordinality k(id, i) join job j on j.id = k.id;
end $$;

-- Leases. A caller says what lease time it expects by its own monotonic clock. If the database's clock tells another
-- (by more than `slack`), or if its steps were noticed by someone else meanwhile (`generation`), nothing is judged.

-- Lease time. Raises DU002: look at the clock again.
create function duly.lease_time_1(known_generation bigint, expected bigint, slack bigint) returns bigint
language plpgsql volatile
set search_path = duly, pg_temp
as $$
declare
  at bigint;
begin
  select clock() - shift into at from lease_clock where id = 1 and generation = known_generation;
  if at is null or abs(at - expected) > slack then
    raise exception 'the clock is not as expected' using errcode = 'DU002';
  end if;
  return at;
end $$;

-- A worker's row, as it is then.
create function duly.beat_1(
  known_generation bigint, expected bigint, slack bigint, p_id text, ttl bigint, p_state text, p_doc text
) returns table(lease_until bigint, beat_at bigint, state text, doc text)
language plpgsql volatile
set search_path = duly, pg_temp
as $$
#variable_conflict use_column
declare
  at bigint := lease_time_1(known_generation, expected, slack);
begin
  insert into worker as w values (p_id, at + ttl, at, p_state, p_doc)
  on conflict (id) do update
     set lease_until = excluded.lease_until, beat_at = excluded.beat_at, state = excluded.state, doc = excluded.doc
   where w.state <> 'lost';
  return query select w.lease_until, w.beat_at, w.state::text, w.doc from worker w where w.id = p_id;
end $$;

-- Whether `expired_runs` would find anything.
create function duly.any_expired_1(known_generation bigint, expected bigint, slack bigint) returns boolean
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  at bigint := lease_time_1(known_generation, expected, slack);
begin
  return exists (
    select from held h join run r on r.job = h.job and r.scheduled = h.scheduled left join worker w on w.id = r.worker
     where w.id is null or w.state = 'lost' or w.lease_until <= at);
end $$;

-- Marks the workers lost whose leases have ended while they hold runs; shows the runs of such and of unknown workers.
create function duly.expired_runs_1(known_generation bigint, expected bigint, slack bigint, most integer)
returns table(due bigint, state smallint, attempt integer, worker text, dispatched bigint, doc text, job_doc text,
              lease_until bigint, beat_at bigint, worker_doc text)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  at bigint := lease_time_1(known_generation, expected, slack);
begin
  -- A beat that comes first is waited for, and then the lease has not ended.
  update worker w set state = 'lost'
   where w.state <> 'lost' and w.lease_until <= at
     and w.id in (select r.worker from held h join run r on r.job = h.job and r.scheduled = h.scheduled);
  return query
  select r.due, r.state, r.attempt, r.worker::text, r.dispatched, r.doc, j.doc, w.lease_until, w.beat_at, w.doc
    from held h join run r on r.job = h.job and r.scheduled = h.scheduled join job j on j.id = h.job
    left join worker w on w.id = r.worker
   where w.id is null or w.state = 'lost'
   limit most;
end $$;

-- Takes, extends or releases the term; shows the one in force.
create function duly.hold_1(
  known_generation bigint, expected bigint, slack bigint, p_owner text, ttl bigint, release boolean
) returns table(owner text, fence bigint, expires_at bigint)
language plpgsql volatile
set search_path = duly, pg_temp
as $$
#variable_conflict use_column
declare
  was term%rowtype; at bigint;
begin
  -- A lock is what is worth waiting for before the time is read.
  select * into was from term where id = 1 for update;
  at := lease_time_1(known_generation, expected, slack);
  if was.id is null then
    if release then
      return query select p_owner, 0::bigint, at;
      return;
    end if;
    insert into term values (1, p_owner, 1, at + ttl) on conflict do nothing;
    if not found then  -- someone else was first
      return query select * from hold_1(known_generation, expected, slack, p_owner, ttl, release);
      return;
    end if;
  elsif was.expires_at > at and was.owner <> p_owner then
    null;
  elsif release then
    update term set expires_at = at where id = 1 and was.expires_at > at;
  elsif was.expires_at > at then
    update term set expires_at = at + ttl where id = 1;
  else
    update term set owner = p_owner, fence = was.fence + 1, expires_at = at + ttl where id = 1;
  end if;
  return query select t.owner::text, t.fence, t.expires_at from term t where t.id = 1;
end $$;

-- Retention.

-- Makes the partitions of the weeks that start at these instants (multiples of `width`, µs); returns how many were made.
-- Records that came before their week are moved into it.
create function duly.make_weeks_1(starts bigint[], width bigint) returns integer
language plpgsql volatile
set search_path = duly, pg_temp
set lock_timeout = '500ms'  -- those who wait behind this lock wait no longer than that
as $$
declare
  start bigint; parent text; week text; made integer := 0;
begin
  foreach start in array starts loop
    continue when to_regclass(format('duly.history_w%s', start / width)) is not null;
    -- One at a time; then in the order in which writers lock.
    lock table history in share update exclusive mode;
    continue when to_regclass(format('duly.history_w%s', start / width)) is not null;
    foreach parent in array array['history', 'history_ref'] loop
      week := format('%s_w%s', parent, start / width);
      execute format('lock table %I in access exclusive mode', parent || '_strays');
      execute format('create table %I (like %I including defaults)', week, parent);
      execute format('with early as (delete from %I where scheduled >= $1 and scheduled < $2 returning *)'
                     ' insert into %I select * from early', parent || '_strays', week) using start, start + width;
      execute format('alter table %I attach partition %I for values from (%s) to (%s)',
                     parent, week, start, start + width);
    end loop;
    made := made + 1;
  end loop;
  return made;
end $$;

-- Until when a week has to stay: an instant before which some run in it is still to be kept; null if none is.
create function duly.week_kept_until_1(week bigint) returns bigint
language plpgsql volatile
set search_path = duly, pg_temp
as $$
declare
  until bigint;
begin
  execute format('select h.finished + j.keep_age from %I h join job j on j.id = h.job'
                 ' where h.finished >= clock() - j.keep_age limit 1', 'history_w' || week) into until;
  return until;
end $$;

-- Drops a week in which no run is to be kept any more; returns how many were in it, null if one is to be kept after all.
create function duly.drop_week_1(week bigint) returns bigint
language plpgsql volatile
set search_path = duly, pg_temp
set lock_timeout = '500ms'
as $$
declare
  n bigint;
begin
  execute format('lock table %I, %I in share mode', 'history_w' || week, 'history_ref_w' || week);
  if week_kept_until_1(week) is not null then
    return null;
  end if;
  execute format('select count(*) from %I', 'history_w' || week) into n;
  execute format('insert into orphan select distinct digest from %I on conflict do nothing', 'history_ref_w' || week);
  execute format('drop table %I, %I', 'history_w' || week, 'history_ref_w' || week);
  return n;
end $$;

-- Finished runs beyond what their jobs keep, of the `stretch` jobs that follow `after_job`, by (job, scheduled).
-- Runs that are only too old, by less than `leeway`, of jobs that keep for `long_age` or more, are left to their weeks.
create function duly.beyond_keep_1(
  after_job text, stretch integer, long_age bigint, leeway bigint, most integer
) returns table(job text, scheduled bigint)
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  at bigint := clock();
begin
  return query
  select s.id::text, v.scheduled
    from (select j.id, j.keep_runs, j.state = 'deleted' as over,
                 at - j.keep_age - case when j.keep_age >= long_age then leeway else 0 end as expiry
            from job j where j.id > after_job order by j.id limit stretch) s
   cross join lateral (
         select (select k.scheduled from history k where k.job = s.id
                  order by k.scheduled desc offset s.keep_runs limit 1) as edge,
                (select k.scheduled from history k where k.job = s.id order by k.scheduled limit 1) as oldest
         offset 0) e
   cross join lateral (
         select h.scheduled from history h
          where h.job = s.id and (h.scheduled <= e.edge or h.finished < s.expiry)
            and (h.scheduled <= at or s.over)  -- a schedule that goes on could come to it again
            and (e.edge is not null or e.oldest < s.expiry)
          order by h.scheduled limit most) v
   limit most;
end $$;

-- Removes finished runs; returns how many there were.
create function duly.remove_finished_1(jobs text[], scheduled_ats bigint[]) returns bigint
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  n bigint;
begin
  with gone as (
    delete from history h using unnest(jobs, scheduled_ats) k(job, scheduled)
     where h.job = k.job and h.scheduled = k.scheduled
    returning h.job, h.scheduled
  ), let_go as (
    delete from history_ref r using gone g where r.job = g.job and r.scheduled = g.scheduled returning r.digest
  ), left_over as (
    insert into orphan select distinct digest from let_go on conflict do nothing
  )
  select count(*) into n from gone;
  return n;
end $$;

-- Removes jobs that are over and of which nothing is left, neither waiting, out nor finished; returns their ids:
-- deleted ones, and among the `stretch` jobs that follow `after_job` those that are completed (active, no run to come).
-- A paused job may be resumed, and stays.
create function duly.remove_empty_jobs_1(after_job text, stretch integer, most integer) returns text[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
  ids text[]; completed bigint;
begin
  select array_agg(id) into ids from (
    (select id from job j
      where j.state = 'deleted' and j.state <> 'active'
        and not exists (select from history h where h.job = j.id) and not exists (select from run r where r.job = j.id)
      order by id limit most)
    union all
    (select s.id from (select j.id, j.state from job j where j.id > after_job order by j.id limit stretch) s
      where s.state = 'active'
        and not exists (select from run r where r.job = s.id) and not exists (select from history h where h.job = s.id)
      limit most)) empty;
  -- Looked at again now that nobody else can change them.
  perform from job j where j.id = any (ids) order by j.id for update;
  with gone as (
    delete from job j
     where j.id = any (ids) and j.state <> 'paused'
       and not exists (select from history h where h.job = j.id) and not exists (select from run r where r.job = j.id)
    returning j.id, j.state
  ), labels as (
    delete from label l using gone g where l.job = g.id
  ), let_go as (
    delete from blob_ref b using gone g where b.job = g.id returning b.digest
  ), left_over as (
    insert into orphan select distinct digest from let_go on conflict do nothing
  )
  select array_agg(id), count(*) filter (where state <> 'deleted') into ids, completed from gone;
  perform count_1(array[-1]::smallint[], array[-completed]::bigint[]);
  return coalesce(ids, '{}');
end $$;

-- Removes workers not heard of for `silence`; one that still holds runs is kept until `expired` has shown them with it.
create function duly.forget_workers_1(silence bigint) returns void
language sql volatile
set search_path = duly, pg_temp
as $$
  delete from worker w
   where w.beat_at < (select clock() - c.shift - silence from lease_clock c where c.id = 1)
     and not exists (select from held h join run r on r.job = h.job and r.scheduled = h.scheduled where r.worker = w.id)
$$;

-- Digests that nothing refers to; those referred to again are forgotten, and so are `handed`, which were told before.
create function duly.orphans_1(handed text[], most integer) returns text[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan
as $$
declare
  found text[];
begin
  delete from orphan where digest = any (handed);
  delete from orphan o
   where o.digest in (select digest from orphan order by digest limit most)
     and (exists (select from blob_ref b where b.digest = o.digest)
          or exists (select from history_ref r where r.digest = o.digest));
  select array_agg(digest) into found from (select digest from orphan order by digest limit most) o;
  return coalesce(found, '{}');
end $$;
