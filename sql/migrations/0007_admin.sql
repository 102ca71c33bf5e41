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
