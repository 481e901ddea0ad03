-- The definitions that changes have replaced: `number` is the version of the job in which each came into force.
create table job_version(
  job text not null,
  number integer not null,
  doc blob not null,
  primary key(job, number)
) without rowid, strict;
