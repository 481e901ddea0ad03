-- The tables of one shard. What each column means and who writes it: the glossary in sqlite_store.py.

create table shard(
  name text primary key
) without rowid, strict;

create table job(
  id text primary key,
  namespace text not null,
  name text not null,
  state text not null,
  kind text not null,
  schedule text not null,
  version integer not null,
  keep_runs integer not null,
  keep_age integer not null,
  doc blob not null
) without rowid, strict;
create index job_name on job(name, id);
-- These are partial so that the common job costs no entry when it is created.
create index job_state on job(state, id) where state <> 'active';
create index job_namespace on job(namespace, id) where namespace <> 'default';

create table label(
  key text not null,
  value text not null,
  job text not null,
  primary key(key, value, job)
) without rowid, strict;
create index label_job on label(job);

-- The due rows of one moment are one stretch of this table, whatever the age of their jobs.
create table run(
  due integer not null,
  job text not null,
  scheduled integer not null,
  state integer not null,
  attempt integer not null,
  worker text not null,
  dispatched integer,
  manual integer not null,
  version integer not null,
  late integer not null,
  doc blob not null,
  primary key(due, job, scheduled)
) without rowid, strict;
-- A run cannot exist twice.
create unique index run_key on run(job, scheduled);
-- What the fleet holds: found without passing a million waiting rows.
create index run_active on run(job, scheduled) where state <> 0;
-- With the rows where due = scheduled (in the table's own order) these give the waiting runs by scheduled time.
create index run_moved on run(scheduled, job) where due <> scheduled;
-- Late ones among a million that wait: running ones, and retries of runs that started late.
create index run_late on run(scheduled, job) where late <> 0;

-- Clustered by time: finished runs arrive nearly in this order, so that inserting them appends.
create table history(
  scheduled integer not null,
  job text not null,
  state integer not null,
  started integer not null,
  late integer not null,
  worker text not null,
  finished integer not null,
  doc blob not null,
  primary key(scheduled, job)
) without rowid, strict;
-- `started` is in it so that the last run that started is found past thousands of missed ones without their rows.
create index history_job on history(job, scheduled, started);
-- The rare rows only: a run that succeeds in time writes to neither.
create index history_state on history(state, scheduled, job) where state <> 3;
create index history_late on history(scheduled, job) where late <> 0;

create table worker(
  id text primary key,
  lease_until integer not null,
  beat_at integer not null,
  state text not null,
  doc blob not null
) without rowid, strict;

create table term(
  id integer primary key check (id = 1),
  owner text not null,
  fence integer not null,
  expires_at integer not null
) strict;

create table blob_ref(
  digest text not null,
  job text not null,
  scheduled integer not null,
  primary key(digest, job, scheduled)
) without rowid, strict;
create index blob_ref_owner on blob_ref(job, scheduled);

create table orphan(
  digest text primary key
) without rowid, strict;

create table tally(
  name text primary key,
  n integer not null
) without rowid, strict;
