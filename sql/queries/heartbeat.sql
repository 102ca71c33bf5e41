-- Prolong the leases that this supervisor still holds, and say that it is alive; never waits for a row. The ids come
-- ascending and without repeats. A row that somebody else has locked is "busy", one that is no longer ours "lost".
-- Locks: the rows it updates. Index: primary key. Changes no indexed column, so that the updates are HOT.
with beat as materialized (
  select b.id, b.lease_no from unnest(%(ids)s::bigint[], %(lease_nos)s::bigint[]) as b (id, lease_no)
),
locked as materialized (
  select beat.id, beat.lease_no, held.job_id, held.cancel_requested_at
  from beat
  left join lateral (
    select j.id as job_id, j.cancel_requested_at
    from tasuki.job as j
    where j.id = beat.id and j.lease_no = beat.lease_no and j.owner = %(owner)s
    limit 1
    for no key update skip locked
  ) as held on true
),
prolonged as (
  update tasuki.job as j
  set
    lease_expires_at = coalesce(%(now)s::timestamptz, clock_timestamp()) + %(lease_for)s * interval '1 second',
    pid = coalesce((%(pids)s::integer[])[width_bucket(j.id, %(ids)s::bigint[])], j.pid),
    slot = coalesce((%(slots)s::smallint[])[width_bucket(j.id, %(ids)s::bigint[])], j.slot),
    started_at = coalesce(
      j.started_at,
      clock_timestamp() - (%(ran_fors)s::float8[])[width_bucket(j.id, %(ids)s::bigint[])] * interval '1 second'
    )
  where j.id = any(array(select job_id from locked where job_id is not null))
),
alive as (
  update tasuki.supervisor
  set seen_at = coalesce(%(now)s::timestamptz, clock_timestamp())
  where owner = (select s.owner from tasuki.supervisor as s where s.owner = %(owner)s for no key update skip locked)
)
select
  locked.id,
  locked.lease_no,
  case
    when locked.job_id is not null then case when locked.cancel_requested_at is null then 'held' else 'cancel' end
    when (
      select true
      from tasuki.job as j
      where j.id = locked.id and j.lease_no = locked.lease_no and j.owner = %(owner)s
      limit 1
    ) then 'busy'
    else 'lost'
  end as verdict
from locked
