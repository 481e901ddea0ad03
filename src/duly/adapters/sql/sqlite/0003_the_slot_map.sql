-- Which shard owns which slot, so that a creation by a stale map can be refused. One row; none in a store that is alone.
create table slot_map(
  id integer primary key check (id = 1),
  epoch integer not null,
  doc blob not null
) strict;
