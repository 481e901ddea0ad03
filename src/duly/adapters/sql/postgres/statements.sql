-- The statements of the PostgreSQL store, each under its name. What writes, and what is asked for often, is a function
-- of 0002_functions.sql or of a later migration: here are their calls, and what is rare.

-- name: clock
select duly.clock(), generation, shift from duly.lease_clock where id = 1

-- name: latest_beat
select max(beat_at) from duly.worker

-- name: move_leases
update duly.lease_clock set generation = generation + 1, shift = shift + $2 where id = 1 and generation = $1

-- name: due
select * from duly.due_runs_1($1, $2, $3, $4, $5)

-- name: active
select * from duly.active_runs_1($1, $2, $3)

-- name: hot
select * from duly.hot_runs_1($1, $2)

-- name: finished
select * from duly.finished_runs_1($1, $2)

-- name: job_rows
select * from duly.job_rows_1($1)

-- name: jobs
select id, doc from duly.job where id = any ($1)

-- name: versions
select doc from duly.job_version where job = $1 and number < $2 order by number desc limit $3

-- name: beat
select * from duly.beat_1($1, $2, $3, $4, $5, $6, $7)

-- name: any_expired
select duly.any_expired_1($1, $2, $3)

-- name: expired
select * from duly.expired_runs_1($1, $2, $3, $4)

-- name: hold
select * from duly.hold_1($1, $2, $3, $4, $5, $6)

-- name: slot_map
select doc from duly.slot_map where id = 1

-- name: put_slot_map
-- Waits for the creations that were judged by the older map; those to come see this one.
update duly.slot_map set epoch = $1, doc = $2 where id = 1 and epoch < $1

-- name: tallies
select kind, sum(n)::bigint from duly.tally group by kind order by kind

-- name: term
select t.owner, t.fence, t.expires_at + c.shift from duly.term t, duly.lease_clock c where t.id = 1 and c.id = 1

-- name: workers
select w.lease_until + c.shift, w.beat_at + c.shift, w.state, w.doc
  from duly.worker w, duly.lease_clock c
 where c.id = 1
 order by w.id

-- name: bytes
select pg_database_size(current_database())

-- name: referred
select d.digest from unnest($1::text[]) d(digest)
 where exists (select from duly.blob_ref b where b.digest = d.digest)
    or exists (select from duly.history_ref h where h.digest = d.digest)

-- name: weeks
-- The weeks of history that have a partition, by their numbers since 1970.
select substr(c.relname, 10)::bigint
  from pg_inherits i join pg_class c on c.oid = i.inhrelid
 where i.inhparent = 'duly.history'::regclass and c.relname ~ '^history_w[0-9]+$'
 order by 1

-- name: make_weeks
select duly.make_weeks_1($1, $2)

-- name: week_kept_until
select duly.week_kept_until_1($1)

-- name: drop_week
select duly.drop_week_1($1)

-- name: beyond_keep
select * from duly.beyond_keep_1($1, $2, $3, $4, $5)

-- name: end_of_stretch
select id from duly.job where id > $1 order by id limit 1 offset $2

-- name: remove_finished
select duly.remove_finished_1($1, $2)

-- name: remove_empty_jobs
select duly.remove_empty_jobs_2($1, $2, $3)

-- name: forget_workers
select duly.forget_workers_1($1)

-- name: orphans
select duly.orphans_1($1, $2)
