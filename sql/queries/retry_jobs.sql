-- Enqueue copies of these finished jobs, if they are in a queue and state that is meant, and none was made before; what came
-- of each, and the copy's id (or that of the copy made before). The finished rows stay as they are. A checkpoint is copied
-- along, and the copy's lease_no says so: at a first lease nobody looks for one. A unique key is taken again, unless another
-- job stands for it by now. The copy belongs to the same batch, which is open again.
-- Locks: those keys and batches, waiting for whoever has them; lock_retries.sql comes first.
-- Indexes: job_archive_id, job_retry_of, job_archive_retry_of.
with asked as materialized (
  select distinct unnest(%(ids)s::bigint[]) as id
),
final as materialized (
  select
    a.id, a.handler, a.queue, a.status, a.payload, a.priority, a.max_attempts, a.limits, a.key, a.unique_key, a.batch_id,
    a.finished_at
  from tasuki.job_archive as a
  where
    a.id = any(array(select id from asked))
    and (%(first)s::timestamptz is null or a.finished_at between %(first)s and %(last)s)
),
copies as materialized (
  select made.retry_of, max(made.id) as id
  from (
    select j.retry_of, j.id from tasuki.job as j where j.retry_of = any(array(select id from asked))
    union all
    -- A copy ends after what it is a copy of, whatever was done to the clock: earlier days are not opened.
    select r.retry_of, r.id
    from tasuki.job_archive as r
    where r.retry_of = any(array(select id from asked)) and r.finished_at >= (select min(finished_at) - interval '1 hour' from final)
  ) as made
  group by made.retry_of
),
eligible as materialized (
  select
    final.*,
    nextval(pg_get_serial_sequence('tasuki.job', 'id')) as new_id,
    exists (select from tasuki.checkpoint as c where c.job_id = final.id) as has_checkpoint,
    -- Of several that had the same unique key, the newest may take it again.
    row_number() over (partition by final.unique_key order by final.id desc) as turn
  from final
  where
    final.status = any(%(states)s::text[])
    and final.queue = coalesce(%(queue)s::text, final.queue)
    and (%(again)s::boolean or final.id not in (select retry_of from copies))
  order by final.id
),
keyed as (
  insert into tasuki.unique_key as u (key, job_id)
  select unique_key, new_id
  from eligible
  where
    unique_key is not null
    and turn = 1
    -- To find it below would lock it, and keep the job that stands from ending meanwhile.
    and not exists (
      select from tasuki.unique_key as standing
      where
        standing.key = eligible.unique_key
        and coalesce(standing.expires_at > clock_timestamp(), true)
        and standing.job_id <> all(%(ids)s::bigint[])
    )
  order by unique_key collate "C"
  on conflict (key) do update
  set job_id = excluded.job_id, expires_at = case when u.expires_at > clock_timestamp() then u.expires_at end
  where u.expires_at <= clock_timestamp() or u.job_id = any(%(ids)s::bigint[])
  returning u.job_id
),
allowed as materialized (
  select * from eligible where unique_key is null or new_id in (select job_id from keyed)
),
inserted as (
  insert into tasuki.job (
    id, queue, handler, payload, priority, max_attempts, limits, scheduled_at, lease_no, key, unique_key, retry_of,
    batch_id
  )
  select
    new_id, queue, handler, payload, priority, max_attempts, limits, clock_timestamp(), has_checkpoint::integer, key,
    unique_key, id, batch_id
  from allowed
),
checkpoints as (
  insert into tasuki.checkpoint (job_id, lease_no, state)
  select allowed.new_id, 1, c.state
  from allowed
  join tasuki.checkpoint as c on c.job_id = allowed.id
  where allowed.has_checkpoint
),
reopened as (
  update tasuki.batch
  set ended_at = null, completed = null, failed = null, canceled = null
  where id = any(array(select batch_id from allowed where batch_id is not null))
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' 0') from (select distinct queue from allowed) as due
)
select
  asked.id,
  case
    when allowed.id is not null then 'retried'
    when eligible.id is not null then 'key taken'
    when copies.id is not null then 'retried before'
    when final.id is not null then 'changed'
    when exists (select from tasuki.job as j where j.id = asked.id) then 'live'
    else 'unknown'
  end as verdict,
  coalesce(allowed.new_id, copies.id) as other,
  (select count(*) from told) as told
from asked
left join final on final.id = asked.id
left join copies on copies.retry_of = asked.id
left join eligible on eligible.id = asked.id
left join allowed on allowed.id = asked.id
