-- Uniqueness of jobs, and how many of a queue, or of one key in it, may run at a time in the whole fleet.

alter table tasuki.job
  add column key text,
  add column unique_key text,
  -- Leased under a queue's limits: only such rows are counted, and indexed, so that other queues pay nothing.
  add column is_counted boolean not null default false,
  add constraint job_keys check (length(key) between 1 and 200 and length(unique_key) between 1 and 300);
create index job_counted on tasuki.job (queue, key) where status = 'running' and is_counted;
create index job_held_key on tasuki.job (queue, key, priority, scheduled_at, id) where held_by = 'key';

alter table tasuki.job_archive
  add column key text,
  add column unique_key text;

alter table tasuki.queue
  add column max_running integer,
  add column max_running_per_key integer,
  add constraint queue_max_running check (max_running >= 0),
  add constraint queue_max_running_per_key check (max_running_per_key >= 1);

-- Which job stands for a key: while it lives (expires_at is null), or for an interval from its enqueueing.
create table tasuki.unique_key (
  key text primary key,
  job_id bigint not null,
  expires_at timestamptz,
  constraint unique_key_length check (length(key) between 1 and 300)
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 10000,
  autovacuum_vacuum_cost_delay = 0
);
create index unique_key_expired on tasuki.unique_key (expires_at) where expires_at is not null;

-- A key is free again in the transaction that ends its job, whoever ends it and however.
create function tasuki.free_unique_key() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  delete from tasuki.unique_key as u where u.key = old.unique_key and u.job_id = old.id and u.expires_at is null;
  return null;
end
$function$;
create trigger job_free_unique_key after delete on tasuki.job
  for each row when (old.unique_key is not null) execute function tasuki.free_unique_key();

-- A job that counted against its queue's limits has stopped: the first that waits for its key may be leased, and whoever
-- leases from that queue should look. The lock makes a lease that is under way wait, or this wait for it: else that lease
-- could hold a job back for a key that has just become free.
create function tasuki.free_key() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  perform from tasuki.queue as q where q.name = old.queue for share;
  if old.key is not null then
    update tasuki.job as j
    set held_by = null
    where
      j.status = 'pending'
      and j.id = (
        select w.id
        from tasuki.job as w
        where w.held_by = 'key' and w.queue = old.queue and w.key = old.key
        order by w.priority, w.scheduled_at, w.id
        limit 1
        for update skip locked
      );
  end if;
  perform pg_notify('tasuki_job', old.queue || ' 0');
  return null;
end
$function$;
create trigger job_free_key_deleted after delete on tasuki.job
  for each row when (old.is_counted and old.status = 'running') execute function tasuki.free_key();
create trigger job_free_key_pending after update of status on tasuki.job
  for each row when (old.is_counted and old.status = 'running' and new.status = 'pending') execute function tasuki.free_key();

-- Leases from a queue that has limits; the columns are those of lease.sql. One supervisor at a time: the queue's row is
-- locked, and each statement here sees all that was committed before. Whoever finds it locked goes away with nothing. A due
-- job whose key runs as often as it may is held back until one of them stops.
create function tasuki.lease_limited(
  queue text, handlers text[], owner uuid, lease_for float8, most integer, now timestamptz default null
) returns table (
  id bigint, lease_no bigint, queue_name text, handler text, priority smallint, attempt integer, max_attempts integer,
  crashes integer, payload text, scheduled_at timestamptz, waited float8, limits text, interruptions integer,
  last_error_kind text, checkpoint text
)
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
  set enable_bitmapscan = off
as $function$
declare
  bounds record;
  due record;
  room integer := lease_limited.most;
  held integer := 0;
  taken bigint[] := '{}';
begin
  select q.max_running, q.max_running_per_key into bounds
  from tasuki.queue as q
  where q.name = lease_limited.queue and q.paused_at is null
  for update skip locked;
  if not found then
    return;
  end if;
  if bounds.max_running is not null then
    room := least(room, bounds.max_running - (
      select count(*)
      from tasuki.job as j
      where j.queue = lease_limited.queue and j.status = 'running' and j.is_counted
    ));
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
        and w.handler = any(lease_limited.handlers)
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
      )
    then
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
      j.id, j.lease_no, j.queue, j.handler, j.priority, j.attempt, j.max_attempts, j.crashes, j.payload::text, j.scheduled_at,
      extract(epoch from coalesce(lease_limited.now, clock_timestamp()) - j.scheduled_at)::float8,
      j.limits::text, j.interruptions, j.last_error ->> 'kind',
      case when j.lease_no > 1 then (select c.state::text from tasuki.checkpoint as c where c.job_id = j.id) end
    from tasuki.job as j
    where j.id = any(taken);
end
$function$;

-- Sets what a queue may run at a time in the whole fleet, all together and per key; null is no limit. What runs already
-- counts, and what was held back for its key may be leased again.
create function tasuki.limit_queue(queue text, max_running integer, max_running_per_key integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  insert into tasuki.queue as q (name, max_running, max_running_per_key)
  values (limit_queue.queue, limit_queue.max_running, limit_queue.max_running_per_key)
  on conflict (name) do update
  set max_running = excluded.max_running, max_running_per_key = excluded.max_running_per_key;
  update tasuki.job as j set is_counted = true
  where j.status = 'running' and j.queue = limit_queue.queue and not j.is_counted
    and (limit_queue.max_running is not null or limit_queue.max_running_per_key is not null);
  update tasuki.job as j set held_by = null where j.held_by = 'key' and j.queue = limit_queue.queue;
  perform pg_notify('tasuki_job', limit_queue.queue || ' 1000');
end
$function$;

-- Inserts jobs that may have unique keys; an array for each column. For each job, in order: the id of the job that stands
-- for its key now, and whether that is `new`, was there before (`stands`), was `replaced` by this one's values, or is there
-- although this one asked to hear of it (`conflict`). Keys are taken in one order, so that two callers don't deadlock; who
-- comes second waits for the first one's transaction.
create function tasuki.enqueue_keyed(
  ids bigint[], queues text[], handlers text[], payloads jsonb[], priorities smallint[], max_attempts integer[],
  due_ats timestamptz[], limits jsonb[], keys text[], unique_keys text[], unique_for float8[], on_conflicts text[]
) returns table (ordinal integer, job_id bigint, outcome text)
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
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
    order by i.unique_key, i.ordinal
  loop
    enqueue_keyed.ordinal := entry.ordinal;
    loop
      standing := null;
      if entry.unique_key is not null then
        insert into tasuki.unique_key as u (key, job_id, expires_at)
        values (entry.unique_key, entry.id, clock_timestamp() + entry.unique_for * interval '1 second')
        on conflict (key) do update set job_id = excluded.job_id, expires_at = excluded.expires_at
        where u.expires_at <= clock_timestamp();
        if not found then
          select u.job_id into standing from tasuki.unique_key as u where u.key = entry.unique_key;
          -- Ended between the two statements: the key is free again.
          continue when standing is null;
        end if;
      end if;
      exit;
    end loop;
    if standing is null then
      insert into tasuki.job (
        id, queue, handler, payload, priority, max_attempts, scheduled_at, limits, key, unique_key
      )
      values (
        entry.id, entry.queue, entry.handler, entry.payload, entry.priority, entry.most, entry.due_at, entry.limits, entry.key,
        entry.unique_key
      );
      enqueue_keyed.job_id := entry.id;
      enqueue_keyed.outcome := 'new';
    else
      enqueue_keyed.job_id := standing;
      enqueue_keyed.outcome := case entry.on_conflict when 'raise' then 'conflict' else 'stands' end;
      if entry.on_conflict = 'replace' then
        update tasuki.job as j
        set
          queue = entry.queue, handler = entry.handler, payload = entry.payload, priority = entry.priority,
          max_attempts = greatest(entry.most, j.attempt + 1), scheduled_at = entry.due_at, limits = entry.limits,
          key = entry.key, held_by = nullif(j.held_by, 'key')
        where j.id = standing and j.status = 'pending';
        if found then
          enqueue_keyed.outcome := 'replaced';
        end if;
      end if;
    end if;
    return next;
  end loop;
end
$function$;

drop function tasuki.enqueue(text, jsonb, text, integer, integer, timestamptz, jsonb);

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
        created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key
      )
      values (
        job.id, job.handler, job.queue, 'canceled', job.payload, job.attempt, job.max_attempts, job.crashes, job.priority,
        '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
        job.created_at, job.scheduled_at, clock_timestamp(), job.lease_no, null, job.limits,
        job.key, job.unique_key
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
