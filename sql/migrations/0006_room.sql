-- Jobs that ask for more memory or cores than a host has are left to larger hosts.

-- Whether a job may be leased for these handlers: it asks for no more than there is room for. `larger` is what those
-- handlers declare that ask for more by themselves (name → limits); of theirs, only jobs whose own limits fit do. What a hand
-- wrote into limits that is no number fits, and is refused when it is to be run. Inlined into whatever calls it.
create function tasuki.fits(handler text, limits jsonb, handlers text[], larger jsonb, room jsonb) returns boolean
  language sql
  immutable
  parallel safe
  return case
    when fits.limits is null then fits.handler = any(fits.handlers)
    else
      (fits.handler = any(fits.handlers) or fits.larger ? fits.handler)
      and not jsonb_path_exists(
        coalesce(fits.larger -> fits.handler, '{}') || jsonb_strip_nulls(fits.limits),
        '$ ? (@.memory > $memory || @.cpus > $cpus)',
        fits.room
      )
  end;

-- Leases from a queue that has limits; the columns are those of lease.sql. One supervisor at a time: the queue's row is
-- locked, and each statement here sees all that was committed before. Whoever finds it locked goes away with nothing. A due
-- job whose key runs as often as it may is held back until one of them stops.
-- When the limits are new, leases may be under way that know nothing of them. They are waited for, but no longer than a
-- minute, which is twice what any statement of a supervisor may take. What they took is marked as counted; as long as
-- some of that is locked by others, all that runs is counted one by one, and no job is held back: its key would not be
-- let go at the end of what was not marked.
create function tasuki.lease_limited(
  queue text, handlers text[], larger jsonb, host jsonb, owner uuid, lease_for float8, most integer,
  now timestamptz default null
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
$function$;
