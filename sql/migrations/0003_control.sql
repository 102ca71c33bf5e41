-- Control over the running job: limits of its own, progress, checkpoints, commands to the host that runs it.

alter table tasuki.job
  add column limits jsonb,
  add column interruptions integer not null default 0,
  add column progress real,
  add column progress_note text,
  -- Checked at every update like the others: no pattern, no detoasting.
  add constraint job_limits check (limits is null or (jsonb_typeof(limits) = 'object' and pg_column_size(limits) <= 1024)),
  add constraint job_interruptions check (interruptions >= 0),
  add constraint job_progress check (
    (progress is null or progress between 0 and 1) and (status = 'running' or (progress is null and progress_note is null))
  );

alter table tasuki.job_archive add column limits jsonb;

-- What a job has left for its next attempt: apart from its row, which heartbeats rewrite. It goes with the job when that
-- completes, else with its archive row.
create table tasuki.checkpoint (
  job_id bigint primary key,
  lease_no bigint not null,
  state jsonb not null,
  written_at timestamptz not null default clock_timestamp(),
  constraint checkpoint_size check (pg_column_size(state) <= 16777216)
) with (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0,
  toast.autovacuum_vacuum_scale_factor = 0,
  toast.autovacuum_vacuum_threshold = 1000,
  toast.autovacuum_vacuum_cost_delay = 0
);

-- What somebody asks of the supervisor that runs a job, and its answer. The rows live for a minute.
create table tasuki.command (
  id bigint generated always as identity primary key,
  owner uuid not null,
  kind text not null,
  job_id bigint not null,
  lease_no bigint not null,
  args jsonb not null default '{}',
  reply jsonb,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null default clock_timestamp() + interval '1 minute',
  constraint command_kind check (length(kind) between 1 and 20)
);
create index command_owner on tasuki.command (owner) where reply is null;

-- The functions of 0002, with what jobs have from this migration and those that follow it on; what they name is looked up
-- when they are called.
drop function tasuki.enqueue(text, jsonb, text, integer, integer, timestamptz);

-- Adds a job, in the caller's transaction, and returns its id. What is null is taken from the handler, as the newest
-- release that ran here declared it. A name that no release ever had is an error, unless the queue is given. `limits` are
-- the job's own: timeout and soft_timeout in seconds, memory in bytes, cpus in units. `key` is
-- what its queue may limit by. `unique_key` (within the handler) makes it the only one while it lives, or for `unique_for`
-- from now; if there is one already that job's id is returned (skip), its values are replaced while it is pending
-- (replace), or that is an error (raise).
create function tasuki.enqueue(
  handler text,
  payload jsonb default '{}',
  queue text default null,
  priority integer default null,
  max_attempts integer default null,
  scheduled_at timestamptz default null,
  limits jsonb default null,
  key text default null,
  unique_key text default null,
  unique_for interval default null,
  on_conflict text default 'skip'
) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  declared record;
  wait_under text;
  size integer;
  unfit text;
  came_of text;
  job_id bigint;
begin
  if enqueue.handler is null then
    raise exception 'a job needs the name of its handler' using errcode = 'null_value_not_allowed';
  end if;
  if length(enqueue.handler) not between 1 and 200 then
    raise exception 'a handler''s name has 1 to 200 characters, not %', length(enqueue.handler)
      using errcode = 'invalid_parameter_value';
  end if;
  if enqueue.payload is null or jsonb_typeof(enqueue.payload) <> 'object' then
    raise exception 'the payload of handler "%" must be a JSON object, not %', enqueue.handler,
      coalesce(jsonb_typeof(enqueue.payload), 'null')
      using errcode = 'invalid_parameter_value', hint = 'Its keys are the names of the handler''s arguments.';
  end if;
  size := octet_length(enqueue.payload::text);
  if size > 1048576 then
    raise exception 'the payload of handler "%" is % bytes of JSON; the limit is 1048576', enqueue.handler, size
      using errcode = 'program_limit_exceeded', hint = 'Store the data elsewhere and send where it is.';
  end if;

  if enqueue.limits is not null and jsonb_typeof(enqueue.limits) is distinct from 'object' then
    raise exception 'limits must be a JSON object' using errcode = 'invalid_parameter_value';
  end if;
  select l.key into unfit
  from jsonb_each(coalesce(enqueue.limits, '{}')) as l
  where
    l.key not in ('timeout', 'soft_timeout', 'memory', 'cpus')
    or not (
      case
        when jsonb_typeof(l.value) <> 'number' then false
        when l.key in ('timeout', 'soft_timeout') then l.value::numeric > 0 and l.value::numeric <= 31622400
        when l.key = 'memory' then l.value::numeric between 1 and 1125899906842624 and l.value::numeric % 1 = 0
        else l.value::numeric between 1 and 4096 and l.value::numeric % 1 = 0
      end
    )
  limit 1;
  if found then
    raise exception 'limits: "%" can''t be used: %', unfit, enqueue.limits -> unfit
      using errcode = 'invalid_parameter_value',
        hint = 'timeout and soft_timeout are seconds, memory is bytes, cpus are units of a host''s --procs.';
  end if;

  select h.queue, h.priority, h.max_attempts into declared from tasuki.handler as h where h.name = enqueue.handler;
  if not found and enqueue.queue is null then
    raise exception 'no handler named "%" is known to this database', enqueue.handler
      using errcode = 'undefined_object',
        hint = 'Handlers become known when a supervisor of their application starts. To enqueue before that, give the queue.';
  end if;
  wait_under := coalesce(enqueue.queue, declared.queue);
  if (wait_under collate "C") !~ '^[A-Za-z0-9_.:-]{1,57}$' then
    raise exception 'a queue can''t be named "%"', wait_under
      using errcode = 'invalid_parameter_value', hint = 'Up to 57 letters, digits and characters of "_.:-".';
  end if;
  if enqueue.scheduled_at not between '1900-01-01 00:00:00+00' and '2200-01-01 00:00:00+00' then
    raise exception 'a job can''t be scheduled at "%"', enqueue.scheduled_at
      using errcode = 'invalid_parameter_value', hint = 'Any time from 1900 to 2200.';
  end if;
  if enqueue.priority not between 0 and 3 then
    raise exception 'priority is 0 (first) to 3 (last), not %', enqueue.priority
      using errcode = 'invalid_parameter_value';
  end if;
  if enqueue.max_attempts < 1 then
    raise exception 'max_attempts is 1 or more, not %', enqueue.max_attempts using errcode = 'invalid_parameter_value';
  end if;

  if enqueue.on_conflict not in ('skip', 'replace', 'raise') then
    raise exception 'on_conflict is skip, replace or raise, not "%"', enqueue.on_conflict
      using errcode = 'invalid_parameter_value';
  end if;
  select k.job_id, k.outcome into job_id, came_of
  from tasuki.enqueue_keyed(
    array[null::bigint], array[wait_under], array[enqueue.handler], array[enqueue.payload],
    array[coalesce(enqueue.priority, declared.priority, 2)]::smallint[],
    array[coalesce(enqueue.max_attempts, declared.max_attempts, 5)], array[enqueue.scheduled_at],
    array[nullif(enqueue.limits, '{}')], array[enqueue.key], array[enqueue.handler || ':' || enqueue.unique_key],
    array[extract(epoch from enqueue.unique_for)::float8], array[enqueue.on_conflict]
  ) as k;
  if came_of = 'conflict' then
    raise exception 'job % has the unique key "%" already', job_id, enqueue.unique_key using errcode = 'unique_violation';
  end if;

  -- Postgres sends equal notifications of one transaction once.
  if enqueue.scheduled_at is null or enqueue.scheduled_at <= clock_timestamp() then
    perform pg_notify('tasuki_job', wait_under || ' 0');
  elsif enqueue.scheduled_at < clock_timestamp() + interval '1 minute' then
    perform pg_notify('tasuki_job', wait_under || ' ahead');
  end if;
  return job_id;
end
$function$;

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
        created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of, batch_id
      )
      values (
        job.id, job.handler, job.queue, 'canceled', job.payload, job.attempt, job.max_attempts, job.crashes, job.priority,
        '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
        job.created_at, job.scheduled_at, clock_timestamp(), job.lease_no, null, job.limits,
        job.key, job.unique_key, job.retry_of, job.batch_id
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
