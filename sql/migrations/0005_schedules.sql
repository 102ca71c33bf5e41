-- Schedules, their ticks, and which job belongs to which schedule; what follows on a job's final failure.

create table tasuki.schedule (
  name text primary key,
  -- Who has declared it: an application, whose newest start wins, or somebody at run time, through a client.
  source text not null,
  timetable text not null,
  tz text not null default 'UTC',
  misfire text not null default 'last',
  misfire_after double precision not null default 60,
  jitter double precision not null default 0,
  overlap text not null default 'allow',
  starts_at timestamptz,
  ends_at timestamptz,
  -- The job that a tick inserts.
  handler text not null,
  queue tasuki.queue_name not null,
  priority smallint not null,
  max_attempts integer not null,
  payload jsonb not null,
  limits jsonb,
  key text,
  tick_argument text,
  version text not null default '',
  declared_at timestamptz not null default clock_timestamp(),
  paused_at timestamptz,
  -- Ticks up to here have been decided; it never goes back, whatever becomes of their rows.
  decided_until timestamptz not null default clock_timestamp(),
  constraint schedule_name check (length(name) between 1 and 200),
  constraint schedule_source check (source in ('app', 'client')),
  constraint schedule_misfire check (misfire in ('skip', 'last') and misfire_after between 0 and 31622400),
  constraint schedule_jitter check (jitter between 0 and 31622400),
  constraint schedule_overlap check (overlap in ('allow', 'skip')),
  constraint schedule_times check (
    isfinite(decided_until) and isfinite(coalesce(starts_at, decided_until)) and isfinite(coalesce(ends_at, decided_until))
  ),
  -- As for a job: what is refused there must not be found out at a tick.
  constraint schedule_job check (
    length(handler) between 1 and 200
    and priority between 0 and 3
    and max_attempts >= 1
    and jsonb_typeof(payload) = 'object'
    and pg_column_size(payload) <= 16777216
    and coalesce(length(key), 1) between 1 and 200
    and (limits is null or (jsonb_typeof(limits) = 'object' and pg_column_size(limits) <= 1024))
  )
) with (fillfactor = 50);

-- One row for each tick that was decided, inserted together with its job: by the primary key a tick fires once in the
-- whole fleet. The newest thousand of a schedule are kept.
create table tasuki.schedule_tick (
  schedule text not null references tasuki.schedule (name) on delete cascade,
  tick timestamptz not null,
  verdict text not null,
  job_id bigint,
  -- How many earlier ticks came too late and were passed over with this one.
  passed_over integer not null default 0,
  decided_at timestamptz not null default clock_timestamp(),
  owner uuid,
  primary key (schedule, tick),
  constraint schedule_tick_verdict check (verdict in ('fired', 'missed', 'overlap', 'manual')),
  constraint schedule_tick_job check ((verdict in ('fired', 'manual')) = (job_id is not null))
);

-- The schedule whose tick a job comes from, directly or as a follow-up: what `overlap` asks for.
alter table tasuki.job add column schedule text;
create index job_schedule on tasuki.job (schedule) where schedule is not null;

-- The schedules of its application: those that no living supervisor names are nobody's. Null: it fires none at all.
alter table tasuki.supervisor add column schedules text[];

-- A handler may declare that a job of another handler follows when one of its jobs finally fails, whoever finds that out:
-- its own supervisor, or one that rescues it. So it is done here, with the archive row and in the same transaction.
create function tasuki.follow_failure() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  follower text;
begin
  select h.options ->> 'on_failed' into follower from tasuki.handler as h where h.name = new.handler;
  if follower is null then
    return null;
  end if;
  insert into tasuki.job (handler, queue, priority, max_attempts, payload, scheduled_at)
  select
    follower, coalesce(h.queue, new.queue), coalesce(h.priority, 2), coalesce(h.max_attempts, 5),
    jsonb_build_object(
      'id', new.id, 'handler', new.handler, 'queue', new.queue, 'attempt', new.attempt, 'error', coalesce(new.error, '{}')
    ),
    clock_timestamp()
  from (select) as one
  left join tasuki.handler as h on h.name = follower;
  perform pg_notify(
    'tasuki_job', coalesce((select h.queue from tasuki.handler as h where h.name = follower), new.queue) || ' 0'
  );
  return null;
end
$function$;

create trigger follow_failure after insert on tasuki.job_archive_failed
  for each row when (new.status = 'failed') execute function tasuki.follow_failure();
