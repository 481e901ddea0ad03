-- A cancel of an attempt that is out changes only the document, which is not compared: a report that was decided
-- before would have undone it.
alter table run add column cancelled integer not null default 0;
