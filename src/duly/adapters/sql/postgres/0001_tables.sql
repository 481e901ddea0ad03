-- The tables of one shard. What each column means and who writes it: the glossary in postgres_store.py.
-- Text that is compared or ordered is in the collation "C": by code point, as every other part of duly orders it.

create table duly.shard(
  name text primary key
);

create table duly.job(
  id text collate "C" primary key,
  namespace text collate "C" not null,
  name text collate "C" not null,
  state text collate "C" not null,
  kind text collate "C" not null,
  schedule text collate "C" not null,
  version bigint not null,
  keep_runs bigint not null,
  keep_age bigint not null,
  doc text not null
);
create index job_name on duly.job(name, id);
-- These are partial so that the common job costs no entry when it is created.
create index job_state on duly.job(state, id) where state <> 'active';
create index job_namespace on duly.job(namespace, id) where namespace <> 'default';

create table duly.label(
  key text collate "C" not null,
  value text collate "C" not null,
  job text collate "C" not null,
  primary key(key, value, job)
);
create index label_job on duly.label(job);

-- A dispatch changes no indexed column, so that it is a HOT update: the new version goes into the free half of its page
-- and no index is written. Hence fillfactor, and hence no index has `state`, `attempt` or `worker` in it.
create table duly.run(
  job text collate "C" not null,
  scheduled bigint not null,
  due bigint not null,
  state smallint not null,
  attempt integer not null,
  worker text collate "C" not null,
  dispatched bigint,
  manual boolean not null,
  version bigint not null,
  late boolean not null,
  cancelled boolean not null,
  doc text not null,
  primary key(job, scheduled)
) with (
  fillfactor = 50,
  -- Finished rows leave dead entries at the front of run_due: they go by number, not by share of the table.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0
);
create index run_due on duly.run(due, job, scheduled);
-- With the rows where due = scheduled (in the order of run_due) these give the waiting runs by scheduled time.
create index run_moved on duly.run(scheduled, job) where due <> scheduled;
create index run_late on duly.run(scheduled, job) where late;

-- What the fleet holds: found without passing a million waiting rows, and without an index on `state`.
create table duly.held(
  job text collate "C" not null,
  scheduled bigint not null,
  primary key(job, scheduled)
) with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0
);

-- One partition a week, so that old history is dropped and not deleted (decision 0013). What lies in no week that was
-- made ahead of time (records of long ago, cancelled runs of next year) is in the default partition.
create table duly.history(
  job text collate "C" not null,
  scheduled bigint not null,
  state smallint not null,
  started boolean not null,
  late boolean not null,
  worker text collate "C" not null,
  finished bigint not null,
  doc text not null,
  primary key(job, scheduled)
) partition by range (scheduled);
create index history_time on duly.history(scheduled, job);
-- The rare rows only: a run that succeeds in time writes to neither.
create index history_state on duly.history(state, scheduled, job) where state <> 3;
create index history_late on duly.history(scheduled, job) where late;
create table duly.history_strays partition of duly.history default;

-- References of finished runs to blobs, in the same weeks.
create table duly.history_ref(
  digest text collate "C" not null,
  job text collate "C" not null,
  scheduled bigint not null,
  primary key(digest, job, scheduled)
) partition by range (scheduled);
create index history_ref_owner on duly.history_ref(job, scheduled);
create table duly.history_ref_strays partition of duly.history_ref default;

-- References of jobs (scheduled = -1) and of runs that have not ended.
create table duly.blob_ref(
  digest text collate "C" not null,
  job text collate "C" not null,
  scheduled bigint not null,
  primary key(digest, job, scheduled)
);
create index blob_ref_owner on duly.blob_ref(job, scheduled);

create table duly.orphan(
  digest text collate "C" primary key
);

-- Leases and terms are kept in lease time: the database's clock less `shift` (decision 0014).
create table duly.worker(
  id text collate "C" primary key,
  lease_until bigint not null,
  beat_at bigint not null,
  state text collate "C" not null,
  doc text not null
) with (fillfactor = 50);

create table duly.term(
  id integer primary key check (id = 1),
  owner text collate "C" not null,
  fence bigint not null,
  expires_at bigint not null
) with (fillfactor = 50);

create table duly.lease_clock(
  id integer primary key check (id = 1),
  generation bigint not null,
  shift bigint not null
) with (fillfactor = 50);
insert into duly.lease_clock values (1, 0, 0);

-- A row from the beginning (epoch 0: no map), so that whoever creates jobs has something to lock.
create table duly.slot_map(
  id integer primary key check (id = 1),
  epoch bigint not null,
  doc text
) with (fillfactor = 50);
insert into duly.slot_map values (1, 0, null);

-- Jobs (kind -1) and runs by state, each in stripes that are added up: with one row a count, every write of the shard
-- would wait for the commit of the one before it.
create table duly.tally(
  kind smallint not null,
  stripe smallint not null,
  n bigint not null,
  primary key(kind, stripe)
) with (
  fillfactor = 25,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
