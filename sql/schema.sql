-- What the migrations make together, written by scripts/dump_schema.py. For reading: nothing runs this file.
-- The partitions for single days are left out.

CREATE SCHEMA tasuki;

CREATE DOMAIN tasuki.instant AS timestamp with time zone
	CONSTRAINT instant CHECK (((VALUE >= '1900-01-01 00:00:00+00'::timestamp with time zone) AND (VALUE <= '2200-01-01 00:00:00+00'::timestamp with time zone)));

CREATE DOMAIN tasuki.queue_name AS text
	CONSTRAINT queue_name CHECK ((((length(VALUE) >= 1) AND (length(VALUE) <= 57)) AND ((VALUE COLLATE "C") !~ '[^A-Za-z0-9_.:-]'::text)));

CREATE FUNCTION tasuki.await_leases() RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  leasing text[];
begin
  for turn in 0..100 loop
    leasing := array(
      select l.virtualtransaction
      from pg_locks as l
      where
        l.locktype = 'relation'
        and l.relation = 'tasuki.job'::regclass
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.mode = 'RowShareLock'
        and l.pid <> pg_backend_pid()
        and (turn = 0 or l.virtualtransaction = any(leasing))
    );
    if cardinality(leasing) = 0 then
      return true;
    end if;
    perform pg_sleep(0.002);
  end loop;
  return false;
end
$$;

CREATE FUNCTION tasuki.cancel(id bigint) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
$$;

CREATE FUNCTION tasuki.cancel_dependent(id bigint, needs bigint, status text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  with removed as (
    delete from tasuki.job as j where j.id = cancel_dependent.id and j.status = 'pending' returning j.*
  )
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
    created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, batch_id, retry_of
  )
  select
    r.id, r.handler, r.queue, 'canceled', r.payload, r.attempt, r.max_attempts, r.crashes, r.priority,
    jsonb_build_object(
      'kind', 'canceled', 'type', 'Dependency',
      'message', format('job %s, which it waited for, has %s', cancel_dependent.needs, cancel_dependent.status)
    ),
    r.created_at, r.scheduled_at, clock_timestamp(), r.lease_no, null, r.limits, r.key, r.unique_key, r.batch_id, r.retry_of
  from removed as r;
end
$$;

CREATE FUNCTION tasuki.close_batch(batch bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
declare
  live bigint;
  it record;
  numbers record;
  wanted text[];
  follow_up text;
begin
  select count(*) into live from (select from tasuki.job as j where j.batch_id = close_batch.batch limit 1000) as counted;
  if live > 0 then
    return live;
  end if;
  select b.* into it from tasuki.batch as b where b.id = close_batch.batch for update;
  if it.id is null or it.ended_at is not null or it.sealed_at is null then
    return null;
  end if;
  -- Seen with the batch locked: whoever adds jobs to it has locked it too.
  if exists (select from tasuki.job as j where j.batch_id = close_batch.batch) then
    return 1;
  end if;
  select
    count(*) filter (where a.status = 'completed') as completed,
    count(*) filter (where a.status = 'failed') as failed,
    count(*) filter (where a.status = 'canceled') as canceled
  into numbers
  from tasuki.job_archive as a
  where
    a.batch_id = close_batch.batch
    and (a.status = 'completed' or not exists (
      select from tasuki.job_archive as r where r.retry_of = a.id and r.batch_id = a.batch_id
    ));
  wanted := array[
    case when it.on_complete is not null then 'complete' end,
    case
      when numbers.failed + numbers.canceled = 0 and it.on_success is not null then 'success'
      when numbers.failed + numbers.canceled > 0 and it.on_failure is not null then 'failure'
    end
  ];
  foreach follow_up in array array_remove(wanted, null) loop
    if not follow_up = any(it.fired) then
      perform tasuki.insert_follow_up(
        case follow_up when 'complete' then it.on_complete when 'success' then it.on_success else it.on_failure end
      );
    end if;
  end loop;
  update tasuki.batch as b
  set
    ended_at = clock_timestamp(),
    completed = numbers.completed,
    failed = numbers.failed,
    canceled = numbers.canceled,
    fired = array(select distinct f.name from unnest(b.fired || wanted) as f (name) where f.name is not null order by 1)
  where b.id = close_batch.batch;
  perform pg_notify('tasuki_batch', close_batch.batch::text);
  return 0;
end
$$;

CREATE FUNCTION tasuki.depend(job bigint, needs bigint[], on_failure text DEFAULT 'cancel'::text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  need bigint;
  ended text;
  held boolean := false;
begin
  for need in select distinct n.id from unnest(depend.needs) as n (id) order by 1 loop
    update tasuki.job as j set has_dependents = true where j.id = need;
    if found then
      insert into tasuki.dependency (job_id, needs_id, on_failure) values (depend.job, need, depend.on_failure)
      on conflict do nothing;
      held := true;
      continue;
    end if;
    select a.status into ended from tasuki.job_archive as a where a.id = need order by a.finished_at desc limit 1;
    if not found then
      raise exception 'job % can''t wait for job %: there is no such job', depend.job, need
        using errcode = 'foreign_key_violation';
    end if;
    if ended <> 'completed' and depend.on_failure = 'cancel' then
      delete from tasuki.dependency as d where d.job_id = depend.job;
      perform tasuki.cancel_dependent(depend.job, need, ended);
      return 'canceled';
    end if;
  end loop;
  if held then
    update tasuki.job as j set held_by = 'dependency' where j.id = depend.job and j.status = 'pending';
    return 'held';
  end if;
  return 'free';
end
$$;

CREATE FUNCTION tasuki.enqueue(handler text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT NULL::text, priority integer DEFAULT NULL::integer, max_attempts integer DEFAULT NULL::integer, scheduled_at timestamp with time zone DEFAULT NULL::timestamp with time zone, limits jsonb DEFAULT NULL::jsonb, key text DEFAULT NULL::text, unique_key text DEFAULT NULL::text, unique_for interval DEFAULT NULL::interval, on_conflict text DEFAULT 'skip'::text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION tasuki.enqueue_keyed(ids bigint[], queues text[], handlers text[], payloads jsonb[], priorities smallint[], max_attempts integer[], due_ats timestamp with time zone[], limits jsonb[], keys text[], unique_keys text[], unique_for double precision[], on_conflicts text[]) RETURNS TABLE(ordinal integer, job_id bigint, outcome text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  entry record;
  standing bigint;
begin
  for entry in
    select
      i.ordinal::integer as ordinal, coalesce(i.id, nextval('tasuki.job_id_seq')) as id, i.queue, i.handler, i.payload,
      i.priority, i.most, coalesce(i.due_at, clock_timestamp()) as due_at, i.limits, i.key, i.unique_key, i.unique_for,
      coalesce(i.on_conflict, 'skip') as on_conflict
    from unnest(
      enqueue_keyed.ids, enqueue_keyed.queues, enqueue_keyed.handlers, enqueue_keyed.payloads, enqueue_keyed.priorities,
      enqueue_keyed.max_attempts, enqueue_keyed.due_ats, enqueue_keyed.limits, enqueue_keyed.keys, enqueue_keyed.unique_keys,
      enqueue_keyed.unique_for, enqueue_keyed.on_conflicts
    ) with ordinality as i (
      id, queue, handler, payload, priority, most, due_at, limits, key, unique_key, unique_for, on_conflict, ordinal
    )
    order by i.unique_key collate "C", i.ordinal
  loop
    enqueue_keyed.ordinal := entry.ordinal;
    loop
      standing := null;
      if entry.unique_key is not null then
        insert into tasuki.unique_key as u (key, job_id, expires_at)
        values (entry.unique_key, entry.id, clock_timestamp() + entry.unique_for * interval '1 second')
        on conflict (key) do nothing;
        if not found then
          -- Only now, and only this: `do update` would lock the key of a job that stands, which could not end meanwhile.
          update tasuki.unique_key as u
          set job_id = entry.id, expires_at = clock_timestamp() + entry.unique_for * interval '1 second'
          where u.key = entry.unique_key and u.expires_at <= clock_timestamp();
        end if;
        if not found then
          select u.job_id into standing from tasuki.unique_key as u where u.key = entry.unique_key;
          -- Ended between the two statements: the key is free again.
          continue when standing is null;
        end if;
      end if;
      enqueue_keyed.outcome := case
        when standing is null then 'new'
        when entry.on_conflict = 'raise' then 'conflict'
        else 'stands'
      end;
      exit when standing is null or entry.on_conflict <> 'replace';
      update tasuki.job as j
      set
        queue = entry.queue, handler = entry.handler, payload = entry.payload, priority = entry.priority,
        max_attempts = greatest(entry.most, j.attempt + 1), scheduled_at = entry.due_at, limits = entry.limits,
        key = entry.key, held_by = nullif(j.held_by, 'key')
      where j.id = standing and j.status = 'pending';
      if found then
        enqueue_keyed.outcome := 'replaced';
        exit;
      end if;
      -- It runs, or has ended within its key's time; or else it has ended just now, and the key is free again.
      exit when exists (select from tasuki.unique_key as u where u.key = entry.unique_key and u.job_id = standing);
    end loop;
    enqueue_keyed.job_id := coalesce(standing, entry.id);
    if standing is null then
      insert into tasuki.job (
        id, queue, handler, payload, priority, max_attempts, scheduled_at, limits, key, unique_key
      )
      values (
        entry.id, entry.queue, entry.handler, entry.payload, entry.priority, entry.most, entry.due_at, entry.limits, entry.key,
        entry.unique_key
      );
    end if;
    return next;
  end loop;
end
$$;

CREATE FUNCTION tasuki.ensure_partitions(days integer DEFAULT 7) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
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
$$;

CREATE FUNCTION tasuki.fits(handler text, limits jsonb, handlers text[], larger jsonb, room jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN (limits IS NULL) THEN (handler = ANY (handlers)) ELSE (((handler = ANY (handlers)) OR (larger ? handler)) AND (NOT jsonb_path_exists((COALESCE((larger -> handler), '{}'::jsonb) || jsonb_strip_nulls(limits)), '$?(@."memory" > $"memory" || @."cpus" > $"cpus")'::jsonpath, room))) END;

CREATE FUNCTION tasuki.follow_failure() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
$$;

CREATE FUNCTION tasuki.forget_dependencies() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  delete from tasuki.dependency as d where d.job_id = old.id;
  return null;
end
$$;

CREATE FUNCTION tasuki.free_dependents() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  ended text;
  freed text;
  dependent record;
begin
  select a.status into ended from tasuki.job_archive as a where a.id = old.id order by a.finished_at desc limit 1;
  ended := coalesce(ended, 'deleted');
  for dependent in
    select d.job_id, d.on_failure from tasuki.dependency as d where d.needs_id = old.id order by d.job_id
  loop
    perform from tasuki.job as j where j.id = dependent.job_id for update;
    delete from tasuki.dependency as d where d.needs_id = old.id and d.job_id = dependent.job_id;
    if ended <> 'completed' and dependent.on_failure = 'cancel' then
      delete from tasuki.dependency as d where d.job_id = dependent.job_id;
      perform tasuki.cancel_dependent(dependent.job_id, old.id, ended);
    elsif not exists (select from tasuki.dependency as d where d.job_id = dependent.job_id) then
      update tasuki.job as j
      set held_by = null, scheduled_at = greatest(j.scheduled_at, clock_timestamp())
      where j.id = dependent.job_id and j.held_by = 'dependency'
      returning j.queue into freed;
      if found then
        perform pg_notify('tasuki_job', freed || ' 0');
      end if;
    end if;
  end loop;
  return null;
end
$$;

CREATE FUNCTION tasuki.free_key() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  perform from tasuki.queue as q where q.name = old.queue for share;
  if old.key is not null then
    perform tasuki.free_next(old.queue, old.key);
  else
    perform pg_notify('tasuki_job', old.queue || ' 0');
  end if;
  return null;
end
$$;

CREATE FUNCTION tasuki.free_next(queue text, key text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  update tasuki.job as j
  set held_by = null
  where
    j.status = 'pending'
    and j.id = (
      select w.id
      from tasuki.job as w
      where w.held_by = 'key' and w.queue = free_next.queue and w.key = free_next.key
      order by w.priority, w.scheduled_at, w.id
      limit 1
      for update skip locked
    );
  perform pg_notify('tasuki_job', free_next.queue || ' 0');
end
$$;

CREATE FUNCTION tasuki.free_unique_key() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  delete from tasuki.unique_key as u where u.key = old.unique_key and u.job_id = old.id and u.expires_at is null;
  return null;
end
$$;

CREATE FUNCTION tasuki.insert_follow_up(spec jsonb, needs bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  follow_up bigint;
begin
  insert into tasuki.job as j (queue, handler, payload, priority, max_attempts, scheduled_at, limits, key)
  values (
    spec ->> 'queue', spec ->> 'handler', spec -> 'payload', (spec ->> 'priority')::smallint,
    (spec ->> 'max_attempts')::integer, clock_timestamp() + coalesce((spec ->> 'delay')::float8, 0) * interval '1 second',
    nullif(spec -> 'limits', 'null'), spec ->> 'key'
  )
  returning j.id into follow_up;
  if insert_follow_up.needs is null then
    perform pg_notify('tasuki_job', (spec ->> 'queue') || ' 0');
  else
    perform tasuki.depend(follow_up, array[insert_follow_up.needs], spec ->> 'on_need_failed');
  end if;
  perform tasuki.insert_follow_up(f.spec, follow_up)
  from jsonb_array_elements(spec -> 'followers') with ordinality as f (spec, ordinal)
  order by f.ordinal;
  return follow_up;
end
$$;

CREATE FUNCTION tasuki.lease_limited(queue text, handlers text[], larger jsonb, host jsonb, owner uuid, lease_for double precision, most integer, now timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS TABLE(id bigint, lease_no bigint, queue_name text, handler text, priority smallint, attempt integer, max_attempts integer, crashes integer, payload text, scheduled_at timestamp with time zone, waited double precision, limits text, interruptions integer, last_error_kind text, checkpoint text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
declare
  bounds record;
  due record;
  room integer := lease_limited.most;
  held integer := 0;
  taken bigint[] := '{}';
begin
  -- Before the row is locked: who ends a job of this queue waits for that lock, and would be waited for here.
  if
    exists (
      select from tasuki.queue as q
      where q.name = lease_limited.queue and not q.is_settled and q.limited_at > clock_timestamp() - interval '1 minute'
    )
    and not tasuki.await_leases()
  then
    return;
  end if;
  select q.max_running, q.max_running_per_key, q.limited_at, q.is_settled into bounds
  from tasuki.queue as q
  where q.name = lease_limited.queue and q.paused_at is null
  for update skip locked;
  if not found then
    return;
  end if;
  if not bounds.is_settled then
    update tasuki.job as j set is_counted = true
    where j.id = any(array(
      select r.id
      from tasuki.job as r
      where r.status = 'running' and r.queue = lease_limited.queue and not r.is_counted
      for no key update skip locked
    ));
    bounds.is_settled := not exists (
      select from tasuki.job as j where j.status = 'running' and j.queue = lease_limited.queue and not j.is_counted
    );
    if bounds.is_settled then
      update tasuki.queue as q set is_settled = true where q.name = lease_limited.queue;
    end if;
  end if;
  if bounds.max_running is not null then
    room := least(
      room,
      bounds.max_running - (
        select count(*)
        from tasuki.job as j
        where j.queue = lease_limited.queue and j.status = 'running' and j.is_counted
      ) - case when bounds.is_settled then 0 else (
        select count(*)
        from tasuki.job as j
        where j.queue = lease_limited.queue and j.status = 'running' and not j.is_counted
      ) end
    );
  end if;
  if room <= 0 then
    return;
  end if;
  for due in
    select j.id, j.key
    from generate_series(0, 3) as p (priority)
    cross join lateral (
      select w.id, w.key
      from tasuki.job as w
      where
        w.status = 'pending'
        and w.held_by is null
        and w.queue = lease_limited.queue
        and w.priority = p.priority::smallint
        and w.scheduled_at <= coalesce(lease_limited.now, clock_timestamp())
        and w.attempt < w.max_attempts
        and tasuki.fits(w.handler, w.limits, lease_limited.handlers, lease_limited.larger, lease_limited.host)
      order by w.scheduled_at, w.id
      limit 1000
      for update skip locked
    ) as j
  loop
    if
      bounds.max_running_per_key is not null
      and due.key is not null
      and bounds.max_running_per_key <= (
        select count(*)
        from tasuki.job as j
        where j.queue = lease_limited.queue and j.key = due.key and j.status = 'running' and j.is_counted
      ) + (
        -- In brackets: the language takes the next `then` outside of them for its own.
        case when bounds.is_settled then 0 else (
          select count(*)
          from tasuki.job as j
          where j.queue = lease_limited.queue and j.key = due.key and j.status = 'running' and not j.is_counted
        ) end
      )
    then
      continue when not bounds.is_settled;
      update tasuki.job as j set held_by = 'key' where j.id = due.id;
      held := held + 1;
      exit when held >= 1000;
      continue;
    end if;
    update tasuki.job as j
    set
      status = 'running',
      owner = lease_limited.owner,
      lease_no = j.lease_no + 1,
      attempt = j.attempt + 1,
      lease_expires_at = coalesce(lease_limited.now, clock_timestamp()) + lease_limited.lease_for * interval '1 second',
      started_at = null,
      is_counted = true
    where j.id = due.id;
    taken := taken || due.id;
    exit when cardinality(taken) >= room;
  end loop;
  return query
    select
      j.id, j.lease_no, j.queue::text, j.handler, j.priority, j.attempt, j.max_attempts, j.crashes, j.payload::text,
      j.scheduled_at::timestamptz, extract(epoch from coalesce(lease_limited.now, clock_timestamp()) - j.scheduled_at)::float8,
      j.limits::text, j.interruptions, j.last_error ->> 'kind',
      case when j.lease_no > 1 then (select c.state::text from tasuki.checkpoint as c where c.job_id = j.id) end
    from tasuki.job as j
    where j.id = any(taken);
end
$$;

CREATE FUNCTION tasuki.limit_queue(queue text, max_running integer, max_running_per_key integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
  is_limited boolean := limit_queue.max_running is not null or limit_queue.max_running_per_key is not null;
begin
  insert into tasuki.queue as q (name, max_running, max_running_per_key, limited_at)
  values (
    limit_queue.queue, limit_queue.max_running, limit_queue.max_running_per_key, case when is_limited then clock_timestamp() end
  )
  on conflict (name) do update
  set
    max_running = excluded.max_running,
    max_running_per_key = excluded.max_running_per_key,
    limited_at = case when is_limited then coalesce(q.limited_at, excluded.limited_at) end,
    is_settled = is_limited and q.is_settled;
  update tasuki.job as j set held_by = null where j.held_by = 'key' and j.queue = limit_queue.queue;
  perform pg_notify('tasuki_job', limit_queue.queue || ' 1000');
end
$$;

CREATE FUNCTION tasuki.missing_partitions(days integer) RETURNS TABLE(parent text, name text, day date)
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
  select p.parent, p.parent || to_char(d.day, '"_"YYYYMMDD'), d.day::date
  from unnest(array['job_archive_completed', 'job_archive_failed', 'attempt']) as p (parent)
  cross join generate_series(current_date - 1, current_date + missing_partitions.days, interval '1 day') as d (day)
  where not exists (
    select from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = format('tasuki.%I', p.parent)::regclass
      and c.relname = p.parent || to_char(d.day, '"_"YYYYMMDD')
  )
  order by d.day, p.parent
$$;

CREATE FUNCTION tasuki.pass_key_on() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
  perform tasuki.free_next(old.queue, old.key)
  from tasuki.queue as q
  where
    q.name = old.queue
    and q.max_running_per_key > (
      select count(*)
      from tasuki.job as j
      where j.queue = old.queue and j.key = old.key and j.status = 'running' and j.is_counted
    );
  return null;
end
$$;

CREATE TABLE tasuki.attempt (
    job_id bigint NOT NULL,
    lease_no bigint NOT NULL,
    owner uuid,
    attempt integer NOT NULL,
    kind text NOT NULL,
    error jsonb,
    usage json,
    output text,
    started_at timestamp with time zone,
    ended_at timestamp with time zone NOT NULL,
    CONSTRAINT attempt_kind CHECK ((kind = ANY (ARRAY['retry'::text, 'snooze'::text, 'release'::text, 'rescue'::text])))
)
PARTITION BY RANGE (ended_at);

CREATE TABLE tasuki.batch (
    id bigint NOT NULL,
    name text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    sealed_at timestamp with time zone,
    total bigint DEFAULT 0 NOT NULL,
    on_complete jsonb,
    on_success jsonb,
    on_failure jsonb,
    fired text[] DEFAULT '{}'::text[] NOT NULL,
    ended_at timestamp with time zone,
    completed bigint,
    failed bigint,
    canceled bigint,
    state jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT batch_end CHECK (((ended_at IS NULL) OR (sealed_at IS NOT NULL))),
    CONSTRAINT batch_name CHECK (((length(name) >= 1) AND (length(name) <= 200)))
);

ALTER TABLE tasuki.batch ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasuki.batch_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE tasuki.checkpoint (
    job_id bigint NOT NULL,
    lease_no bigint NOT NULL,
    state jsonb NOT NULL,
    written_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    version bigint DEFAULT 0 NOT NULL,
    CONSTRAINT checkpoint_size CHECK ((pg_column_size(state) <= 16777216))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', toast.autovacuum_vacuum_scale_factor='0', toast.autovacuum_vacuum_threshold='1000', toast.autovacuum_vacuum_cost_delay='0');

CREATE TABLE tasuki.command (
    id bigint NOT NULL,
    owner uuid NOT NULL,
    kind text NOT NULL,
    job_id bigint NOT NULL,
    lease_no bigint NOT NULL,
    args jsonb DEFAULT '{}'::jsonb NOT NULL,
    reply jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone DEFAULT (clock_timestamp() + '00:01:00'::interval) NOT NULL,
    CONSTRAINT command_kind CHECK (((length(kind) >= 1) AND (length(kind) <= 20)))
);

ALTER TABLE tasuki.command ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasuki.command_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE tasuki.dependency (
    job_id bigint NOT NULL,
    needs_id bigint NOT NULL,
    on_failure text NOT NULL,
    CONSTRAINT dependency_on_failure CHECK ((on_failure = ANY (ARRAY['cancel'::text, 'run'::text]))),
    CONSTRAINT dependency_other CHECK ((job_id <> needs_id))
);

CREATE TABLE tasuki.handler (
    name text NOT NULL,
    queue tasuki.queue_name NOT NULL,
    priority smallint NOT NULL,
    max_attempts integer NOT NULL,
    options jsonb DEFAULT '{}'::jsonb NOT NULL,
    version text DEFAULT ''::text NOT NULL,
    last_seen timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT handler_max_attempts CHECK ((max_attempts >= 1)),
    CONSTRAINT handler_name CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT handler_priority CHECK (((priority >= 0) AND (priority <= 3)))
);

CREATE TABLE tasuki.job (
    id bigint NOT NULL,
    queue tasuki.queue_name DEFAULT 'default'::text NOT NULL,
    handler text NOT NULL,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    priority smallint DEFAULT 2 NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    scheduled_at tasuki.instant DEFAULT now() NOT NULL,
    created_at tasuki.instant DEFAULT now() NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    max_attempts integer DEFAULT 5 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    lease_no bigint DEFAULT 0 NOT NULL,
    owner uuid,
    lease_expires_at tasuki.instant,
    cancel_requested_at tasuki.instant,
    started_at tasuki.instant,
    pid integer,
    slot smallint,
    held_by text,
    last_error jsonb,
    limits jsonb,
    interruptions integer DEFAULT 0 NOT NULL,
    progress real,
    progress_note text,
    key text,
    unique_key text,
    is_counted boolean DEFAULT false NOT NULL,
    schedule text DEFAULT NULLIF(current_setting('tasuki.schedule'::text, true), ''::text),
    retry_of bigint,
    batch_id bigint,
    has_dependents boolean DEFAULT false NOT NULL,
    CONSTRAINT job_attempt CHECK (((attempt >= 0) AND (max_attempts >= 1) AND ((attempt < max_attempts) OR ((status = 'running'::text) AND (attempt = max_attempts))))),
    CONSTRAINT job_crashes CHECK (((crashes >= 0) AND (crashes <= attempt))),
    CONSTRAINT job_handler_name CHECK (((length(handler) >= 1) AND (length(handler) <= 200))),
    CONSTRAINT job_held CHECK (((held_by IS NULL) OR ((status = 'pending'::text) AND (held_by = ANY (ARRAY['handler'::text, 'dependency'::text, 'key'::text]))))),
    CONSTRAINT job_interruptions CHECK ((interruptions >= 0)),
    CONSTRAINT job_keys CHECK ((((length(key) >= 1) AND (length(key) <= 200)) AND ((length(unique_key) >= 1) AND (length(unique_key) <= 300)))),
    CONSTRAINT job_lease_no CHECK ((lease_no >= 0)),
    CONSTRAINT job_limits CHECK (((limits IS NULL) OR ((jsonb_typeof(limits) = 'object'::text) AND (pg_column_size(limits) <= 1024)))),
    CONSTRAINT job_owner_lease CHECK (((owner IS NULL) = (lease_expires_at IS NULL))),
    CONSTRAINT job_owner_running CHECK (((status = 'running'::text) = (owner IS NOT NULL))),
    CONSTRAINT job_payload_size CHECK ((pg_column_size(payload) <= 16777216)),
    CONSTRAINT job_pending_blank CHECK (((status = 'running'::text) OR ((cancel_requested_at IS NULL) AND (started_at IS NULL) AND (pid IS NULL) AND (slot IS NULL)))),
    CONSTRAINT job_priority CHECK (((priority >= 0) AND (priority <= 3))),
    CONSTRAINT job_progress CHECK ((((progress IS NULL) OR ((progress >= (0)::double precision) AND (progress <= (1)::double precision))) AND ((status = 'running'::text) OR ((progress IS NULL) AND (progress_note IS NULL))))),
    CONSTRAINT job_status CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text])))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='10000', autovacuum_vacuum_cost_delay='0', autovacuum_vacuum_insert_scale_factor='0', autovacuum_vacuum_insert_threshold='100000', autovacuum_analyze_scale_factor='0.1', autovacuum_analyze_threshold='10000', toast.autovacuum_vacuum_scale_factor='0', toast.autovacuum_vacuum_threshold='10000', toast.autovacuum_vacuum_cost_delay='0');

CREATE TABLE tasuki.job_archive (
    id bigint NOT NULL,
    handler text NOT NULL,
    queue text NOT NULL,
    status text NOT NULL,
    payload jsonb NOT NULL,
    attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    crashes integer NOT NULL,
    priority smallint NOT NULL,
    result jsonb,
    error jsonb,
    usage json,
    output text,
    created_at timestamp with time zone NOT NULL,
    scheduled_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    lease_no bigint NOT NULL,
    owner uuid,
    limits jsonb,
    key text,
    unique_key text,
    retry_of bigint,
    batch_id bigint,
    CONSTRAINT job_archive_attempt CHECK (((attempt >= 0) AND (attempt <= max_attempts))),
    CONSTRAINT job_archive_result CHECK (((status = 'completed'::text) OR (result IS NULL)))
)
PARTITION BY LIST (status);

CREATE TABLE tasuki.job_archive_completed (
    id bigint CONSTRAINT job_archive_id_not_null NOT NULL,
    handler text CONSTRAINT job_archive_handler_not_null NOT NULL,
    queue text CONSTRAINT job_archive_queue_not_null NOT NULL,
    status text CONSTRAINT job_archive_status_not_null NOT NULL,
    payload jsonb CONSTRAINT job_archive_payload_not_null NOT NULL,
    attempt integer CONSTRAINT job_archive_attempt_not_null NOT NULL,
    max_attempts integer CONSTRAINT job_archive_max_attempts_not_null NOT NULL,
    crashes integer CONSTRAINT job_archive_crashes_not_null NOT NULL,
    priority smallint CONSTRAINT job_archive_priority_not_null NOT NULL,
    result jsonb,
    error jsonb,
    usage json,
    output text,
    created_at timestamp with time zone CONSTRAINT job_archive_created_at_not_null NOT NULL,
    scheduled_at timestamp with time zone CONSTRAINT job_archive_scheduled_at_not_null NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone CONSTRAINT job_archive_finished_at_not_null NOT NULL,
    lease_no bigint CONSTRAINT job_archive_lease_no_not_null NOT NULL,
    owner uuid,
    limits jsonb,
    key text,
    unique_key text,
    retry_of bigint,
    batch_id bigint,
    CONSTRAINT job_archive_attempt CHECK (((attempt >= 0) AND (attempt <= max_attempts))),
    CONSTRAINT job_archive_result CHECK (((status = 'completed'::text) OR (result IS NULL)))
)
PARTITION BY RANGE (finished_at);

CREATE TABLE tasuki.job_archive_failed (
    id bigint CONSTRAINT job_archive_id_not_null NOT NULL,
    handler text CONSTRAINT job_archive_handler_not_null NOT NULL,
    queue text CONSTRAINT job_archive_queue_not_null NOT NULL,
    status text CONSTRAINT job_archive_status_not_null NOT NULL,
    payload jsonb CONSTRAINT job_archive_payload_not_null NOT NULL,
    attempt integer CONSTRAINT job_archive_attempt_not_null NOT NULL,
    max_attempts integer CONSTRAINT job_archive_max_attempts_not_null NOT NULL,
    crashes integer CONSTRAINT job_archive_crashes_not_null NOT NULL,
    priority smallint CONSTRAINT job_archive_priority_not_null NOT NULL,
    result jsonb,
    error jsonb,
    usage json,
    output text,
    created_at timestamp with time zone CONSTRAINT job_archive_created_at_not_null NOT NULL,
    scheduled_at timestamp with time zone CONSTRAINT job_archive_scheduled_at_not_null NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone CONSTRAINT job_archive_finished_at_not_null NOT NULL,
    lease_no bigint CONSTRAINT job_archive_lease_no_not_null NOT NULL,
    owner uuid,
    limits jsonb,
    key text,
    unique_key text,
    retry_of bigint,
    batch_id bigint,
    CONSTRAINT job_archive_attempt CHECK (((attempt >= 0) AND (attempt <= max_attempts))),
    CONSTRAINT job_archive_result CHECK (((status = 'completed'::text) OR (result IS NULL)))
)
PARTITION BY RANGE (finished_at);

ALTER TABLE tasuki.job ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME tasuki.job_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE tasuki.migration (
    number integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE tasuki.queue (
    name tasuki.queue_name NOT NULL,
    paused_at timestamp with time zone,
    max_running integer,
    max_running_per_key integer,
    limited_at timestamp with time zone,
    is_settled boolean DEFAULT false NOT NULL,
    keep_for interval,
    kept_from timestamp with time zone,
    CONSTRAINT queue_keep_for CHECK (((keep_for >= '00:01:00'::interval) AND (keep_for <= '36500 days'::interval))),
    CONSTRAINT queue_max_running CHECK ((max_running >= 0)),
    CONSTRAINT queue_max_running_per_key CHECK ((max_running_per_key >= 1))
);

CREATE TABLE tasuki.schedule (
    name text NOT NULL,
    source text NOT NULL,
    timetable text NOT NULL,
    tz text DEFAULT 'UTC'::text NOT NULL,
    misfire text DEFAULT 'last'::text NOT NULL,
    misfire_after double precision DEFAULT 60 NOT NULL,
    jitter double precision DEFAULT 0 NOT NULL,
    overlap text DEFAULT 'allow'::text NOT NULL,
    starts_at timestamp with time zone,
    ends_at timestamp with time zone,
    handler text NOT NULL,
    queue tasuki.queue_name NOT NULL,
    priority smallint NOT NULL,
    max_attempts integer NOT NULL,
    payload jsonb NOT NULL,
    limits jsonb,
    key text,
    tick_argument text,
    version text DEFAULT ''::text NOT NULL,
    declared_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    paused_at timestamp with time zone,
    decided_until timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT schedule_jitter CHECK (((jitter >= (0)::double precision) AND (jitter <= (31622400)::double precision))),
    CONSTRAINT schedule_job CHECK ((((length(handler) >= 1) AND (length(handler) <= 200)) AND ((priority >= 0) AND (priority <= 3)) AND (max_attempts >= 1) AND (jsonb_typeof(payload) = 'object'::text) AND (pg_column_size(payload) <= 16777216) AND ((COALESCE(length(key), 1) >= 1) AND (COALESCE(length(key), 1) <= 200)) AND ((limits IS NULL) OR ((jsonb_typeof(limits) = 'object'::text) AND (pg_column_size(limits) <= 1024))))),
    CONSTRAINT schedule_misfire CHECK (((misfire = ANY (ARRAY['skip'::text, 'last'::text])) AND ((misfire_after >= (0)::double precision) AND (misfire_after <= (31622400)::double precision)))),
    CONSTRAINT schedule_name CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT schedule_overlap CHECK ((overlap = ANY (ARRAY['allow'::text, 'skip'::text]))),
    CONSTRAINT schedule_source CHECK ((source = ANY (ARRAY['app'::text, 'client'::text]))),
    CONSTRAINT schedule_times CHECK ((isfinite(decided_until) AND isfinite(COALESCE(starts_at, decided_until)) AND isfinite(COALESCE(ends_at, decided_until))))
)
WITH (fillfactor='50');

CREATE TABLE tasuki.schedule_tick (
    schedule text NOT NULL,
    tick timestamp with time zone NOT NULL,
    verdict text NOT NULL,
    job_id bigint,
    passed_over integer DEFAULT 0 NOT NULL,
    decided_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    owner uuid,
    CONSTRAINT schedule_tick_job CHECK (((verdict = ANY (ARRAY['fired'::text, 'manual'::text])) = (job_id IS NOT NULL))),
    CONSTRAINT schedule_tick_verdict CHECK ((verdict = ANY (ARRAY['fired'::text, 'missed'::text, 'overlap'::text, 'manual'::text])))
);

CREATE TABLE tasuki.supervisor (
    owner uuid NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    pid_started bigint NOT NULL,
    boot_id text NOT NULL,
    pid_ns text NOT NULL,
    version text NOT NULL,
    procs integer NOT NULL,
    queues text[] NOT NULL,
    handlers text[] NOT NULL,
    lease_seconds double precision NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    schedules text[],
    app text,
    CONSTRAINT supervisor_lease CHECK ((lease_seconds > (0)::double precision))
)
WITH (fillfactor='50');

CREATE TABLE tasuki.unique_key (
    key text NOT NULL,
    job_id bigint NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT unique_key_length CHECK (((length(key) >= 1) AND (length(key) <= 300)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='10000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE tasuki.upkeep (
    task text NOT NULL,
    begun_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT upkeep_task CHECK (((length(task) >= 1) AND (length(task) <= 40)))
)
WITH (fillfactor='50');

CREATE UNLOGGED TABLE tasuki.waiter (
    job_id bigint NOT NULL,
    expires_at timestamp with time zone DEFAULT (clock_timestamp() + '00:01:00'::interval) NOT NULL,
    id bigint NOT NULL
);

ALTER TABLE tasuki.waiter ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasuki.waiter_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY tasuki.job_archive ATTACH PARTITION tasuki.job_archive_completed FOR VALUES IN ('completed');

ALTER TABLE ONLY tasuki.job_archive ATTACH PARTITION tasuki.job_archive_failed FOR VALUES IN ('failed', 'canceled');

ALTER TABLE ONLY tasuki.batch
    ADD CONSTRAINT batch_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tasuki.checkpoint
    ADD CONSTRAINT checkpoint_pkey PRIMARY KEY (job_id);

ALTER TABLE ONLY tasuki.command
    ADD CONSTRAINT command_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tasuki.dependency
    ADD CONSTRAINT dependency_pkey PRIMARY KEY (needs_id, job_id);

ALTER TABLE ONLY tasuki.handler
    ADD CONSTRAINT handler_pkey PRIMARY KEY (name);

ALTER TABLE ONLY tasuki.job
    ADD CONSTRAINT job_pkey PRIMARY KEY (id);

ALTER TABLE ONLY tasuki.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (number);

ALTER TABLE ONLY tasuki.queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (name);

ALTER TABLE ONLY tasuki.schedule
    ADD CONSTRAINT schedule_pkey PRIMARY KEY (name);

ALTER TABLE ONLY tasuki.schedule_tick
    ADD CONSTRAINT schedule_tick_pkey PRIMARY KEY (schedule, tick);

ALTER TABLE ONLY tasuki.supervisor
    ADD CONSTRAINT supervisor_pkey PRIMARY KEY (owner);

ALTER TABLE ONLY tasuki.unique_key
    ADD CONSTRAINT unique_key_pkey PRIMARY KEY (key);

ALTER TABLE ONLY tasuki.upkeep
    ADD CONSTRAINT upkeep_pkey PRIMARY KEY (task);

ALTER TABLE ONLY tasuki.waiter
    ADD CONSTRAINT waiter_pkey PRIMARY KEY (id);

CREATE INDEX attempt_job ON ONLY tasuki.attempt USING btree (job_id, lease_no);

CREATE INDEX batch_by_name ON tasuki.batch USING btree (name, id) WHERE (name IS NOT NULL);

CREATE INDEX batch_ended ON tasuki.batch USING btree (ended_at) WHERE (ended_at IS NOT NULL);

CREATE INDEX batch_open ON tasuki.batch USING btree (id) WHERE (ended_at IS NULL);

CREATE INDEX command_owner ON tasuki.command USING btree (owner) WHERE (reply IS NULL);

CREATE INDEX dependency_job ON tasuki.dependency USING btree (job_id);

CREATE INDEX job_archive_batch ON ONLY tasuki.job_archive USING btree (batch_id, id) WHERE (batch_id IS NOT NULL);

CREATE INDEX job_archive_completed_batch_id_id_idx ON ONLY tasuki.job_archive_completed USING btree (batch_id, id) WHERE (batch_id IS NOT NULL);

CREATE INDEX job_archive_id ON ONLY tasuki.job_archive USING btree (id);

CREATE INDEX job_archive_completed_id_idx ON ONLY tasuki.job_archive_completed USING btree (id);

CREATE INDEX job_archive_retry_of ON ONLY tasuki.job_archive USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX job_archive_completed_retry_of_idx ON ONLY tasuki.job_archive_completed USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX job_archive_failed_batch_id_id_idx ON ONLY tasuki.job_archive_failed USING btree (batch_id, id) WHERE (batch_id IS NOT NULL);

CREATE INDEX job_archive_failed_id_idx ON ONLY tasuki.job_archive_failed USING btree (id);

CREATE INDEX job_archive_failed_retry_of_idx ON ONLY tasuki.job_archive_failed USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX job_batch ON tasuki.job USING btree (batch_id) WHERE (batch_id IS NOT NULL);

CREATE INDEX job_counted ON tasuki.job USING btree (queue, key) WHERE (is_counted AND (status = 'running'::text));

CREATE INDEX job_held ON tasuki.job USING btree (handler) WHERE (held_by = 'handler'::text);

CREATE INDEX job_held_key ON tasuki.job USING btree (queue, key, priority, scheduled_at, id) WHERE (held_by = 'key'::text);

CREATE INDEX job_lease ON tasuki.job USING btree (queue, priority, scheduled_at, id) WHERE ((status = 'pending'::text) AND (held_by IS NULL));

CREATE INDEX job_owner ON tasuki.job USING btree (owner) WHERE (status = 'running'::text);

CREATE INDEX job_retry_of ON tasuki.job USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX job_schedule ON tasuki.job USING btree (schedule) WHERE (schedule IS NOT NULL);

CREATE INDEX unique_key_expired ON tasuki.unique_key USING btree (expires_at) WHERE (expires_at IS NOT NULL);

ALTER INDEX tasuki.job_archive_batch ATTACH PARTITION tasuki.job_archive_completed_batch_id_id_idx;

ALTER INDEX tasuki.job_archive_id ATTACH PARTITION tasuki.job_archive_completed_id_idx;

ALTER INDEX tasuki.job_archive_retry_of ATTACH PARTITION tasuki.job_archive_completed_retry_of_idx;

ALTER INDEX tasuki.job_archive_batch ATTACH PARTITION tasuki.job_archive_failed_batch_id_id_idx;

ALTER INDEX tasuki.job_archive_id ATTACH PARTITION tasuki.job_archive_failed_id_idx;

ALTER INDEX tasuki.job_archive_retry_of ATTACH PARTITION tasuki.job_archive_failed_retry_of_idx;

CREATE TRIGGER follow_failure AFTER INSERT ON tasuki.job_archive_failed FOR EACH ROW WHEN ((new.status = 'failed'::text)) EXECUTE FUNCTION tasuki.follow_failure();

CREATE TRIGGER job_forget_dependencies AFTER DELETE ON tasuki.job FOR EACH ROW WHEN ((old.held_by = 'dependency'::text)) EXECUTE FUNCTION tasuki.forget_dependencies();

CREATE TRIGGER job_free_dependents AFTER DELETE ON tasuki.job FOR EACH ROW WHEN (old.has_dependents) EXECUTE FUNCTION tasuki.free_dependents();

CREATE TRIGGER job_free_key_deleted AFTER DELETE ON tasuki.job FOR EACH ROW WHEN ((old.is_counted AND (old.status = 'running'::text))) EXECUTE FUNCTION tasuki.free_key();

CREATE TRIGGER job_free_key_pending AFTER UPDATE OF status ON tasuki.job FOR EACH ROW WHEN ((old.is_counted AND (old.status = 'running'::text) AND (new.status = 'pending'::text))) EXECUTE FUNCTION tasuki.free_key();

CREATE TRIGGER job_free_unique_key AFTER DELETE ON tasuki.job FOR EACH ROW WHEN ((old.unique_key IS NOT NULL)) EXECUTE FUNCTION tasuki.free_unique_key();

CREATE TRIGGER job_pass_key_on_deleted AFTER DELETE ON tasuki.job FOR EACH ROW WHEN (((old.key IS NOT NULL) AND (old.status = 'pending'::text) AND (old.held_by IS NULL))) EXECUTE FUNCTION tasuki.pass_key_on();

CREATE TRIGGER job_pass_key_on_put_off AFTER UPDATE OF queue, key, scheduled_at, held_by ON tasuki.job FOR EACH ROW WHEN (((old.key IS NOT NULL) AND (old.status = 'pending'::text) AND (old.held_by IS NULL) AND (new.status = 'pending'::text) AND (new.held_by IS DISTINCT FROM 'key'::text) AND ((new.held_by IS NOT NULL) OR ((new.queue)::text <> (old.queue)::text) OR (new.key IS DISTINCT FROM old.key) OR ((new.scheduled_at)::timestamp with time zone > (old.scheduled_at)::timestamp with time zone)))) EXECUTE FUNCTION tasuki.pass_key_on();

ALTER TABLE ONLY tasuki.schedule_tick
    ADD CONSTRAINT schedule_tick_schedule_fkey FOREIGN KEY (schedule) REFERENCES tasuki.schedule(name) ON DELETE CASCADE;

REVOKE ALL ON FUNCTION tasuki.missing_partitions(days integer) FROM PUBLIC;
