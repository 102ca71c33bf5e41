-- What any language may call: tasuki.enqueue and tasuki.cancel. They run with the caller's rights.

-- Adds a job, in the caller's transaction, and returns its id. What is null is taken from the handler, as the newest
-- release that ran here declared it. A name that no release ever had is an error, unless the queue is given.
create function tasuki.enqueue(
  handler text,
  payload jsonb default '{}',
  queue text default null,
  priority integer default null,
  max_attempts integer default null,
  scheduled_at timestamptz default null
) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  declared record;
  wait_under text;
  size integer;
  job_id bigint;
begin
  if enqueue.handler is null then
    raise exception 'a job needs the name of its handler' using errcode = 'null_value_not_allowed';
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

  select h.queue, h.priority, h.max_attempts into declared from tasuki.handler as h where h.name = enqueue.handler;
  if not found and enqueue.queue is null then
    raise exception 'no handler named "%" is known to this database', enqueue.handler
      using errcode = 'undefined_object',
        hint = 'Handlers become known when a supervisor of their application starts. To enqueue before that, give the queue.';
  end if;
  wait_under := coalesce(enqueue.queue, declared.queue);

  insert into tasuki.job as j (queue, handler, payload, priority, max_attempts, scheduled_at)
  values (
    wait_under,
    enqueue.handler,
    enqueue.payload,
    coalesce(enqueue.priority, declared.priority, 2),
    coalesce(enqueue.max_attempts, declared.max_attempts, 5),
    coalesce(enqueue.scheduled_at, clock_timestamp())
  )
  returning j.id into job_id;

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
create function tasuki.cancel(id bigint) returns text
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
        created_at, scheduled_at, finished_at, lease_no, owner
      )
      values (
        job.id, job.handler, job.queue, 'canceled', job.payload, job.attempt, job.max_attempts, job.crashes, job.priority,
        '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
        job.created_at, job.scheduled_at, clock_timestamp(), job.lease_no, null
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
