-- The hand on the queue: jobs that are run again by request, how long finished ones are kept, and who keeps the house.

-- The final job that this one was made of, by request. Hardly any job has one, so the indexes cost nothing.
alter table tasuki.job add column retry_of bigint;
alter table tasuki.job_archive add column retry_of bigint;
create index job_retry_of on tasuki.job (retry_of) where retry_of is not null;
create index job_archive_retry_of on tasuki.job_archive (retry_of) where retry_of is not null;

alter table tasuki.queue
  -- Shorter than the retention of everything else: finished jobs of this queue are deleted row by row.
  add column keep_for interval,
  -- Everything of this queue that finished before is deleted already, so nobody has to look there again.
  add column kept_from timestamptz,
  add constraint queue_keep_for check (keep_for between interval '1 minute' and interval '36500 days');

-- What one of the fleet does for all of them, and when somebody last began. A row and not an advisory lock: it holds
-- behind poolers, which share sessions, and it says when nobody has done it for long.
create table tasuki.upkeep (
  task text primary key,
  begun_at timestamptz not null,
  ended_at timestamptz,
  constraint upkeep_task check (length(task) between 1 and 40)
) with (fillfactor = 50);

-- Whoever may use the schema may call it, whatever else they may do: canceling a job needs today's partition, and a
-- supervisor's role need not own the tables. It makes empty partitions for a hundred days at most.
create or replace function tasuki.ensure_partitions(days integer default 7) returns integer
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set timezone = 'UTC'
as $function$
declare
  missing record;
  made integer := 0;
begin
  if ensure_partitions.days is null or ensure_partitions.days not between 0 and 100 then
    raise exception 'partitions can be made for 0 to 100 days, not for %', coalesce(ensure_partitions.days::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if not exists (select from tasuki.missing_partitions(days)) then
    return 0;
  end if;
  perform pg_advisory_xact_lock(7235421, 2);
  -- Whoever had the lock before may have made them. Tables are looked up in pg_class itself: to_regclass() answers from a
  -- cache that an advisory lock does not refresh.
  for missing in select m.parent, m.name, m.day from tasuki.missing_partitions(days) as m loop
    if not exists (
      select from pg_class as c where c.relnamespace = 'tasuki'::regnamespace and c.relname = missing.name
    ) then
      execute format('create table tasuki.%I (like tasuki.%I including all)', missing.name, missing.parent);
    end if;
    execute format(
      'alter table tasuki.%I attach partition tasuki.%I for values from (%L) to (%L)',
      missing.parent, missing.name, missing.day::timestamptz, (missing.day + 1)::timestamptz
    );
    made := made + 1;
  end loop;
  return made;
end
$function$;

grant execute on function tasuki.ensure_partitions(integer) to public;

-- Cancels a job. Returns what came of it: canceled, if it was pending; requested, if it runs, and then its supervisor stops
-- it within a second or so; finished, if it had ended before; unknown, if there is no such job (any more).
create or replace function tasuki.cancel(id bigint) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  job record;
  violated text;
begin
  select j.* into job from tasuki.job as j where j.id = cancel.id for update;
  if not found then
    -- This looks on a newer snapshot: whoever took the row away from under us has committed its archive row.
    return case when exists (select from tasuki.job_archive as a where a.id = cancel.id) then 'finished' else 'unknown' end;
  end if;

  if job.status = 'running' then
    update tasuki.job as j
    set cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp())
    where j.id = cancel.id;
    perform pg_notify('tasuki_cancel', job.owner::text);
    return 'requested';
  end if;

  loop
    begin
      insert into tasuki.job_archive (
        id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
        created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of
      )
      values (
        job.id, job.handler, job.queue, 'canceled', job.payload, job.attempt, job.max_attempts, job.crashes, job.priority,
        '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
        job.created_at, job.scheduled_at, clock_timestamp(), job.lease_no, null, job.limits,
        job.key, job.unique_key, job.retry_of
      );
      exit;
    exception when check_violation then
      -- Supervisors make the partitions of the days to come; where none has run for a week, today's may be missing.
      get stacked diagnostics violated = constraint_name;
      if violated <> '' or tasuki.ensure_partitions(0) = 0 then
        raise;
      end if;
    end;
  end loop;
  delete from tasuki.job as j where j.id = cancel.id;
  return 'canceled';
end
$function$;
