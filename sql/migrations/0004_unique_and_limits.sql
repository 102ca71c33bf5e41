-- Uniqueness of jobs, and how many of a queue, or of one key in it, may run at a time in the whole fleet.

alter table tasuki.job
  add column key text,
  add column unique_key text,
  -- Leased under a queue's limits: only such rows are counted, and indexed, so that other queues pay nothing.
  add column is_counted boolean not null default false,
  add constraint job_keys check (length(key) between 1 and 200 and length(unique_key) between 1 and 300);
-- The flag comes first: every lease makes a new version of its row, and of nearly all of them it is false.
create index job_counted on tasuki.job (queue, key) where is_counted and status = 'running';
create index job_held_key on tasuki.job (queue, key, priority, scheduled_at, id) where held_by = 'key';

alter table tasuki.job_archive
  add column key text,
  add column unique_key text;

alter table tasuki.queue
  add column max_running integer,
  add column max_running_per_key integer,
  -- Since when it has limits, and whether all that runs is counted: not yet, as long as leases may be under way that began
  -- before and know of no limit.
  add column limited_at timestamptz,
  add column is_settled boolean not null default false,
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

-- The first that waits for a key may be leased, and whoever leases from its queue should look. What somebody else has locked
-- just now is passed over, rather than waited for: if it was the only one, and stays, a supervisor's next round finds it
-- (release_keys.sql).
create function tasuki.free_next(queue text, key text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
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
$function$;

-- A job that counted against its queue's limits has stopped. The lock makes a lease that is under way wait, or this wait for
-- it: else that lease could hold a job back for a key that has just become free.
create function tasuki.free_key() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  perform from tasuki.queue as q where q.name = old.queue for share;
  if old.key is not null then
    perform tasuki.free_next(old.queue, old.key);
  else
    perform pg_notify('tasuki_job', old.queue || ' 0');
  end if;
  return null;
end
$function$;
create trigger job_free_key_deleted after delete on tasuki.job
  for each row when (old.is_counted and old.status = 'running') execute function tasuki.free_key();
create trigger job_free_key_pending after update of status on tasuki.job
  for each row when (old.is_counted and old.status = 'running' and new.status = 'pending') execute function tasuki.free_key();

-- A job that could have been leased for its key is not there any more, or not now: the next one of that key takes its place.
-- If as many run as may, each of them will let one go when it stops.
create function tasuki.pass_key_on() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
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
$function$;
create trigger job_pass_key_on_deleted after delete on tasuki.job
  for each row when (old.key is not null and old.status = 'pending' and old.held_by is null)
  execute function tasuki.pass_key_on();
create trigger job_pass_key_on_put_off after update of queue, key, scheduled_at, held_by on tasuki.job
  for each row when (
    old.key is not null and old.status = 'pending' and old.held_by is null
    and new.status = 'pending' and new.held_by is distinct from 'key'
    and (
      new.held_by is not null or new.queue <> old.queue or new.key is distinct from old.key
      or new.scheduled_at > old.scheduled_at
    )
  )
  execute function tasuki.pass_key_on();

-- Sets what a queue may run at a time in the whole fleet, all together and per key; null is no limit. What runs already
-- counts, and what was held back for its key may be leased again.
create function tasuki.limit_queue(queue text, max_running integer, max_running_per_key integer) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
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
$function$;

-- Whether everybody has ended who was leasing when this was called, which is waited for, a fifth of a second at most. Who
-- leases has locked the table before looking at limits: whoever locks it later knows those that were committed before.
create function tasuki.await_leases() returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
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
$function$;

-- Inserts jobs that may have unique keys; an array for each column. For each job, in order: the id of the job that stands
-- for its key now, and whether that is `new`, was there before (`stands`), was `replaced` by this one's values, or is there
-- although this one asked to hear of it (`conflict`). Keys are taken in one order, that of their code points, so that two
-- callers don't deadlock, and who calls several times in a transaction should go on in that order; who comes second waits
-- for the first one's transaction. What stands is not locked: its job may end while the caller's transaction is open.
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
$function$;
