-- Finished jobs of one day's time, as one JSON object each, by ascending id above `after`: at most so many, and no more once
-- their text is so long. Whole days and the states that are meant are opened, nothing else. None: there are no more.
-- Locks: nothing. Index: job_archive_id.
select sized.id, sized.line
from (
  select written.id, written.line, sum(length(written.line)) over (order by written.id) - length(written.line) as before
  from (
    select a.id, row_to_json(job)::text as line
    from tasuki.job_archive as a
    cross join lateral (
      select
        a.id, a.queue, a.handler, a.status, a.payload, a.priority, a.attempt, a.max_attempts, a.crashes, a.result, a.error,
        a.usage, a.output, a.created_at, a.scheduled_at, a.started_at, a.finished_at, a.key, a.unique_key, a.limits,
        a.retry_of, a.batch_id
    ) as job
    where
      a.id > %(after)s
      and a.finished_at >= %(first)s
      and a.finished_at < %(last)s
      and (%(states)s::text[] is null or a.status = any(%(states)s))
      and (%(queue)s::text is null or a.queue = %(queue)s)
      and (%(handler)s::text is null or a.handler = %(handler)s)
    order by a.id
    limit %(most)s
  ) as written
) as sized
where sized.before < %(characters)s
order by sized.id
