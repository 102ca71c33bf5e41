-- What became of the jobs of the demo's batches, which are known by their created_at.
-- Locks: none. Index: none; finished_at leaves only the partitions of the days since the first batch.
select
  archive.status,
  archive.payload ->> 'path' as path,
  archive.result::text as result,
  archive.error ->> 'type' as error_type,
  archive.error ->> 'message' as error_message,
  (archive.usage ->> 'cpu_seconds')::float8 as cpu_seconds,
  archive.started_at,
  archive.finished_at,
  archive.owner
from tasuki.job_archive as archive
where archive.queue = %(queue)s
  and archive.created_at = any(%(batches)s)
  and archive.finished_at >= %(since)s
order by archive.finished_at, archive.id
