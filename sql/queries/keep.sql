-- Put on record what running jobs say of themselves: their progress, and what they leave for their next attempt. The ids
-- come ascending and without repeats. What does not come back as kept was locked by somebody, or is no longer ours.
-- An older checkpoint never takes the place of a newer one, also if this is the statement of a connection that was given
-- up, and it comes to its locks only now.
-- Locks: the rows it writes, skipping those that somebody else holds; all writes of a checkpoint happen under the lock of
-- its job. Index: primary keys. Changes no indexed column, so that the updates are HOT.
with item as materialized (
  select i.*
  from unnest(
    %(ids)s::bigint[], %(lease_nos)s::bigint[], %(has_progress)s::boolean[], %(checkpoints)b::text[],
    %(versions)s::bigint[]
  ) as i (id, lease_no, has_progress, checkpoint, version)
),
locked as materialized (
  select item.*, held.job_id
  from item
  left join lateral (
    select j.id as job_id
    from tasuki.job as j
    where j.id = item.id and j.lease_no = item.lease_no and j.owner = %(owner)s
    limit 1
    for no key update skip locked
  ) as held on true
),
moved as (
  update tasuki.job as j
  set
    progress = (%(fractions)s::real[])[width_bucket(j.id, %(ids)s::bigint[])],
    progress_note = nullif((%(notes)b::text[])[width_bucket(j.id, %(ids)s::bigint[])], '')
  where j.id = any(array(select job_id from locked where job_id is not null and has_progress))
),
kept as (
  insert into tasuki.checkpoint as c (job_id, lease_no, version, state, written_at)
  select job_id, lease_no, version, checkpoint::jsonb, clock_timestamp()
  from locked
  where job_id is not null and checkpoint is not null
  on conflict (job_id) do update
  set lease_no = excluded.lease_no, version = excluded.version, state = excluded.state, written_at = excluded.written_at
  where (c.lease_no, c.version) <= (excluded.lease_no, excluded.version)
)
select id, lease_no
from locked
where job_id is not null
