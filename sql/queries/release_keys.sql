-- Let go of the first job held for its key, of each key that runs less often than it may: whoever should have let it go had
-- it locked, died, or was undone. One for each key, since what can be leased already is not looked at; leasing holds what
-- is too many again. Keys come in order, `most` of them behind a given one; how many there were, how many jobs were let go,
-- and the last key.
-- Locks: the rows it writes, skipping those that somebody else locked. Indexes: job_held_key, job_counted.
with recursive held (queue, key) as (
  (
    select j.queue, j.key
    from tasuki.job as j
    where j.held_by = 'key' and (j.queue, j.key) > (%(queue)s::text, %(key)s::text)
    order by j.queue, j.key
    limit 1
  )
  union all
  select next.queue, next.key
  from held
  cross join lateral (
    select j.queue, j.key
    from tasuki.job as j
    where j.held_by = 'key' and (j.queue, j.key) > (held.queue, held.key)
    order by j.queue, j.key
    limit 1
  ) as next
),
looked_at as materialized (
  select held.queue, held.key from held limit %(most)s
),
first as materialized (
  select head.id, looked_at.queue
  from looked_at
  left join tasuki.queue as q on q.name = looked_at.queue
  cross join lateral (
    select j.id
    from tasuki.job as j
    where j.held_by = 'key' and j.queue = looked_at.queue and j.key = looked_at.key
    order by j.priority, j.scheduled_at, j.id
    -- Without a limit of keys nobody would ever let go of the others.
    limit case when q.max_running_per_key is null then 1000 else 1 end
    for no key update skip locked
  ) as head
  where
    q.paused_at is null
    and (
      q.max_running_per_key is null
      or q.max_running_per_key > (
        select count(*)
        from tasuki.job as r
        where r.queue = looked_at.queue and r.key = looked_at.key and r.status = 'running' and r.is_counted
      )
    )
),
freed as (
  update tasuki.job set held_by = null where id = any(array(select id from first))
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' 0')
  from (select distinct queue from first where %(notify)s::boolean) as due
)
select
  (select count(*) from looked_at) as looked_at,
  (select count(*) from first) as let_go,
  last.queue,
  last.key,
  (select count(*) from told) as told
from (select 1) as always
left join (select queue, key from looked_at order by queue desc, key desc limit 1) as last on true
