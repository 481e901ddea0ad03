-- The definitions that changes have replaced: `number` is the version of the job in which each came into force. Its
-- references to blobs are in blob_ref, at scheduled = -1 - number.
create table duly.job_version(
  job text collate "C" not null,
  number bigint not null,
  doc text not null,
  primary key(job, number)
);

-- As change_job_1; and if something was written, the definition that was replaced (null: it stays) is kept, with its
-- files. The oldest of the job's go beyond `most` or `most_bytes` in all; the newest stays, whatever its size.
create function duly.change_job_2(
  replaced_number bigint, replaced_doc text, replaced_files text[], most integer, most_bytes bigint,
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
  answer bigint[]; beyond bigint[];
begin
  answer := change_job_1(
    p_id, was_version, p_namespace, p_name, p_state, p_kind, p_schedule, p_version, p_keep_runs, p_keep_age, p_doc,
    label_keys, label_values, files, keep_waiting, begun, unbegun,
    open_jobs, open_scheduled, open_dues, open_states, open_attempts, open_workers, open_dispatched, open_manuals,
    open_versions, open_lates, open_cancels, open_docs,
    rec_scheduled, rec_states, rec_started, rec_lates, rec_workers, rec_finished, rec_docs,
    ref_digests, ref_scheduled, past_digests, past_scheduled);
  if replaced_number is null or answer is null or answer <> '{}' then
    return answer;
  end if;
  -- The row of the job is held since change_job_1, so that nobody else is at its versions.
  insert into job_version values (p_id, replaced_number, replaced_doc) on conflict do nothing;
  insert into blob_ref select f.digest, p_id, -1 - replaced_number from unnest(replaced_files) f(digest)
  on conflict do nothing;
  select array_agg(v.number) into beyond from (
    select number, row_number() over newest_first as place, sum(octet_length(doc)) over newest_first as bytes
      from job_version where job = p_id window newest_first as (order by number desc)
  ) v where v.place > 1 and (v.place > most or v.bytes > most_bytes);
  if beyond is not null then
    delete from job_version where job = p_id and number = any (beyond);
    with dropped as (
      delete from blob_ref r using unnest(beyond) b(number) where r.job = p_id and r.scheduled = -1 - b.number
      returning r.digest
    )
    insert into orphan select distinct digest from dropped on conflict do nothing;
  end if;
  return answer;
end $$;

-- As remove_empty_jobs_1, which lets go of all that a job refers to; its replaced definitions go as well.
create function duly.remove_empty_jobs_2(after_job text, stretch integer, most integer) returns text[]
language plpgsql volatile
set search_path = duly, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
  ids text[] := remove_empty_jobs_1(after_job, stretch, most);
begin
  delete from job_version v using unnest(ids) g(id) where v.job = g.id;
  return ids;
end $$;
