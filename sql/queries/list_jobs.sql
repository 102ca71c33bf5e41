-- A page of jobs below the id `before`, newest first, live and finished alike. It looks at no more than `examine` rows of
-- each table, so it never takes long; `reached` says how far down it has seen everything, null meaning to the end. The
-- archive is cut to the days and states that can be meant. Nothing is kept of what it looks at, except of those that match.
-- Locks: nothing. Indexes: primary key, job_archive_id, both backwards; of a batch, job_batch and
-- job_archive_batch.
with edge as materialized (
  select
    greatest(
      (
        select j.id
        from tasuki.job as j
        where
          %(has_live)s::boolean
          and (%(before)s::bigint is null or j.id < %(before)s)
          and (%(batch)s::bigint is null or j.batch_id = %(batch)s)
        order by j.id desc
        offset %(examine)s - 1
        limit 1
      ),
      (
        select a.id
        from tasuki.job_archive as a
        where
          (%(before)s::bigint is null or a.id < %(before)s)
          and (%(batch)s::bigint is null or a.batch_id = %(batch)s)
          and (%(states)s::text[] is null or a.status = any(%(states)s))
          and (%(since)s::timestamptz is null or a.finished_at >= %(since)s)
        order by a.id desc
        offset %(examine)s - 1
        limit 1
      )
    ) as id
)
select
  edge.id as reached, job.id, job.queue, job.handler, job.status, job.priority, job.attempt, job.max_attempts,
  job.created_at, job.scheduled_at, job.started_at, job.finished_at, job.held_by, job.is_cancel_requested, job.retry_of,
  job.key, job.batch_id, nullif(concat_ws(': ', job.error ->> 'type', job.error ->> 'message'), '') as error
from edge
left join lateral (
  select seen.*
  from (
    (
      select
        j.id, j.queue, j.handler, j.status, j.priority, j.attempt, j.max_attempts, j.created_at, j.scheduled_at, j.started_at,
        null::timestamptz as finished_at, j.held_by, j.cancel_requested_at is not null as is_cancel_requested, j.retry_of,
        j.key, j.unique_key, j.batch_id, j.last_error as error, j.created_at as counts_from
      from tasuki.job as j
      where
        %(has_live)s::boolean
        and (%(before)s::bigint is null or j.id < %(before)s)
        and (%(batch)s::bigint is null or j.batch_id = %(batch)s)
      order by j.id desc
      limit %(examine)s
    )
    union all
    (
      select
        a.id, a.queue, a.handler, a.status, a.priority, a.attempt, a.max_attempts, a.created_at, a.scheduled_at, a.started_at,
        a.finished_at, null, false, a.retry_of,
        a.key, a.unique_key, a.batch_id, a.error, a.finished_at
      from tasuki.job_archive as a
      where
        (%(before)s::bigint is null or a.id < %(before)s)
        and (%(batch)s::bigint is null or a.batch_id = %(batch)s)
        and (%(states)s::text[] is null or a.status = any(%(states)s))
        and (%(since)s::timestamptz is null or a.finished_at >= %(since)s)
      order by a.id desc
      limit %(examine)s
    )
  ) as seen
  where
    seen.id >= coalesce(edge.id, -9223372036854775808)
    and (%(states)s::text[] is null or seen.status = any(%(states)s))
    and (%(since)s::timestamptz is null or seen.counts_from >= %(since)s)
    and (%(queue)s::text is null or seen.queue = %(queue)s)
    and (%(handler)s::text is null or seen.handler = %(handler)s)
    and (%(key)s::text is null or %(key)s in (seen.key, seen.unique_key) or seen.unique_key = seen.handler || ':' || %(key)s)
    and (
      %(error)s::text is null
      or strpos(lower(concat_ws(': ', seen.error ->> 'type', seen.error ->> 'message')), lower(%(error)s)) > 0
    )
  order by seen.id desc
  limit %(limit)s
) as job on true
order by job.id desc
