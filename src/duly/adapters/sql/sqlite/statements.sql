-- The statements of the SQLite store, each under its name. `{rows}` stands for any number of rows (sqlite_bulk.py). States come as parameters, except waiting (0) and
-- succeeded (3), which the partial indexes name: SQLite uses such an index only if the condition is literally there.

-- name: insert_jobs
insert into job values {rows} on conflict do nothing

-- name: insert_label
insert into label values (?, ?, ?)

-- name: delete_labels
delete from label where job = ?

-- name: update_job
update job
   set namespace = ?2, name = ?3, state = ?4, kind = ?5, schedule = ?6, version = ?7, keep_runs = ?8, keep_age = ?9,
       doc = ?10
 where id = ?1

-- name: delete_job
delete from job where id = ?

-- name: keep_version
-- A number that is there already can only be that of the same definition.
insert into job_version values (?, ?, ?) on conflict do nothing

-- name: versions
select doc from job_version where job = ? and number < ? order by number desc limit ?

-- name: version_numbers
select number from job_version where job = ?

-- name: versions_beyond_keep
-- The newest stays, whatever its size.
select number
  from (select number, row_number() over newest_first as place, sum(length(doc)) over newest_first as bytes
          from job_version where job = ?1 window newest_first as (order by number desc))
 where place > 1 and (place > ?2 or bytes > ?3)

-- name: delete_version
delete from job_version where job = ? and number = ?

-- name: job_doc
select doc from job where id = ?

-- name: insert_runs
-- A run that is there or was there stays as it is: nothing fires twice.
insert into run
select column1, column2, column3, column4, column5, column6, column7, column8, column9, column10, column11, 0
  from (values {rows})
 where not exists (select 1 from history where job = column2 and scheduled = column3)
on conflict do nothing

-- name: insert_first_runs
-- For jobs that are new in this transaction, so that they cannot have history.
insert into run
select column1, column2, column3, column4, column5, column6, column7, column8, column9, column10, column11, 0
  from (values {rows}) where true
on conflict do nothing

-- name: insert_history
-- Terminal is final: the record that is there first stays.
insert into history values {rows} on conflict do nothing

-- name: insert_records
-- Runs that were opened already ended (missed occurrences), unless they exist.
insert into history
select column1, column2, column3, column4, column5, column6, column7, column8
  from (values {rows})
 where not exists (select 1 from run where job = column2 and scheduled = column1)
on conflict do nothing

-- The next six compare what the decision was made on. `version` is compared while the run waits: one that a change
-- of its job has replaced is another run. `cancelled`: a cancel noted between decision and commit must not be undone.
-- `not indexed` keeps to the primary key, past the index on the same columns.

-- name: move_columns
-- The fast form finds rows by their primary key; a miss proves nothing (due may differ): ask the exact form.
update run not indexed set state = ?, attempt = ?, worker = ?, dispatched = ?
 where state = ? and attempt = ? and worker = ? and version = coalesce(?, version)
   and (due, job, scheduled) in (values {rows})

-- name: move_columns_exactly
update run set state = ?1, attempt = ?2, worker = ?3, dispatched = ?4
 where job = ?6 and scheduled = ?7 and state = ?8 and attempt = ?9 and worker = ?10
   and (state <> 0 or version = ?11)

-- name: move_document
update run not indexed
   set state = ?, attempt = ?, worker = ?, dispatched = ?, version = ?, late = ?, doc = ?, cancelled = ?
 where due = ? and job = ? and scheduled = ? and state = ? and attempt = ? and worker = ?
   and (state <> 0 or version = ?) and cancelled = ?

-- name: move_document_exactly
-- Only a run that goes back to waiting gets another `due`, so only this form moves the row within the table.
update run set state = ?1, attempt = ?2, worker = ?3, dispatched = ?4, version = ?5, late = ?6, doc = ?7,
       cancelled = ?8, due = ?9
 where job = ?10 and scheduled = ?11 and state = ?12 and attempt = ?13 and worker = ?14
   and (state <> 0 or version = ?15) and cancelled = ?16

-- name: take_runs
delete from run not indexed
 where state = ? and attempt = ? and worker = ? and version = coalesce(?, version) and cancelled = ?
   and (due, job, scheduled) in (values {rows})

-- name: take_run_exactly
delete from run
 where job = ?2 and scheduled = ?3 and state = ?4 and attempt = ?5 and worker = ?6
   and (state <> 0 or version = ?7) and cancelled = ?8

-- name: waiting_of_job
select scheduled, attempt, manual from run where job = ? and state = 0

-- name: delete_waiting
delete from run where job = ? and scheduled = ? and state = 0

-- name: run_state
select state from run where job = ? and scheduled = ?

-- name: begun_of_job
-- Unfinished runs of the schedule that have had an attempt: out, or waiting to be tried again.
select scheduled from run where job = ? and (state <> 0 or attempt > 0) and manual = 0

-- name: unbegun_of_job
select scheduled from run where job = ? and state = 0 and attempt = 0 and manual = 0

-- name: job_has_version
select 1 from job where id = ? and version = ?

-- name: in_history
select 1 from history where job = ? and scheduled = ?

-- name: due
-- The row-value cursor matters: `due > ?` alone skips the rest of a burst at the page's edge.
-- A page is one JSON array [[run, job's version, job], …]: one step, and one decoding.
select '[' || coalesce(group_concat(item), '') || ']'
  from (select '[' || cast(r.doc as text) || ',' || j.version || ',' || cast(j.doc as text) || ']' as item
          from run r join job j on j.id = r.job
         where (r.due, r.job, r.scheduled) > (?, ?, ?) and r.due <= ? and r.state = 0
         order by r.due, r.job, r.scheduled
         limit ?)

-- name: active
select r.due, r.state, r.attempt, r.worker, r.dispatched, r.doc, r.job, j.version, j.doc
  from run r join job j on j.id = r.job
 where (r.job, r.scheduled) > (?, ?) and r.state <> 0
 order by r.job, r.scheduled
 limit ?

-- name: expired
-- `workers` are few; the active runs are what the fleet holds.
select r.due, r.state, r.attempt, r.worker, r.dispatched, r.doc, r.job, j.version, j.doc, w.doc
  from run r indexed by run_active join job j on j.id = r.job left join worker w on w.id = r.worker
 where r.state <> 0 and (w.id is null or w.state = 'lost' or w.lease_until <= ?)
 limit ?

-- name: load_hot
select due, state, attempt, worker, dispatched, doc from run where job = ? and scheduled = ?

-- name: load_finished
select doc from history where scheduled = ? and job = ?

-- name: job_row
-- The job, the earliest start that waits, whether any run is left, and the newest finished run that started.
select j.doc,
       (select min(r.due) from run r where r.job = j.id and r.state = 0),
       exists(select 1 from run r where r.job = j.id),
       (select h.doc from history h
         where h.job = j.id
           and h.scheduled = (select k.scheduled from history k
                               where k.job = j.id and k.started <> 0 order by k.scheduled desc limit 1))
  from job j where j.id = ?

-- name: put_worker
insert into worker values (?1, ?2, ?3, ?4, ?5)
on conflict(id) do update set lease_until = ?2, beat_at = ?3, state = ?4, doc = ?5

-- name: worker
select doc from worker where id = ?

-- name: workers
select doc from worker order by id

-- name: forget_workers
-- One that still holds runs is kept until `expired` has shown them with it.
delete from worker where beat_at < ? and id not in (select worker from run where state <> 0)

-- name: term
select owner, fence, expires_at from term

-- name: put_term
insert into term values (1, ?, ?, ?)
on conflict(id) do update set owner = excluded.owner, fence = excluded.fence, expires_at = excluded.expires_at

-- name: move_term
update term set expires_at = expires_at + ? where id = 1

-- name: slot_map
select doc from slot_map where id = 1

-- name: put_slot_map
insert into slot_map values (1, ?, ?)
on conflict(id) do update set epoch = excluded.epoch, doc = excluded.doc where excluded.epoch > slot_map.epoch

-- name: add_to_tally
insert into tally values {rows} on conflict(name) do update set n = n + excluded.n

-- name: tallies
select name, n from tally

-- name: refer
insert into blob_ref values (?, ?, ?) on conflict do nothing

-- name: references_of
select digest from blob_ref where job = ? and scheduled = ?

-- name: forget_references
delete from blob_ref where job = ? and scheduled = ?

-- name: referred
select 1 from blob_ref where digest = ? limit 1

-- name: orphan
insert into orphan values (?) on conflict do nothing

-- name: orphans
select digest from orphan order by digest

-- name: forget_orphan
delete from orphan where digest = ?

-- name: history_by_job
-- One stretch of jobs: how many finished runs each has, and whether some may be beyond what it keeps.
-- A job that is not deleted goes on: what it has behind it is not forgotten before its time.
select h.job, j.keep_runs, j.keep_age, h.n > j.keep_runs or h.oldest < ?1 - j.keep_age, j.state <> 'deleted'
  from (select job, count(*) as n, min(scheduled) as oldest
          from history where job > ?2 group by job order by job limit ?3) h
  left join job j on j.id = h.job
 order by h.job

-- name: beyond_keep
-- Those of a job's finished runs that are past the newest `keep_runs` or ended before an instant, oldest first.
select scheduled from history h
 where h.job = ?1 and h.scheduled <= ?5
   and (h.finished < ?2
        or h.scheduled <= (select k.scheduled from history k
                            where k.job = ?1 order by k.scheduled desc limit 1 offset ?3))
 order by h.scheduled
 limit ?4

-- name: delete_finished
delete from history where (scheduled, job) in (values {rows})

-- name: referring
select scheduled, job from blob_ref indexed by blob_ref_owner where (scheduled, job) in (values {rows})

-- name: empty_deleted_jobs
select id from job j indexed by job_state
 where state = 'deleted' and state <> 'active'
   and not exists (select 1 from history h where h.job = j.id)
   and not exists (select 1 from run r where r.job = j.id)
 limit ?

-- name: completed_and_empty
-- A job that will not run again goes with the last that is kept of it; a paused one may be resumed.
select id from job j
 where id = ? and state = 'active'
   and not exists (select 1 from history h where h.job = j.id)
   and not exists (select 1 from run r where r.job = j.id)
