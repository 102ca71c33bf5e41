-- What became of the jobs that cancel.sql did not find, on a fresh snapshot. Without a bound in time, since a user may ask
-- for any old job. Locks: nothing. Indexes: primary key, job_archive_id.
select
  m.id,
  case
    when (select true from tasuki.job as j where j.id = m.id limit 1) then 'again'
    when (select true from tasuki.job_archive as a where a.id = m.id limit 1) then 'finished'
    else 'unknown'
  end as verdict
from unnest(%(ids)s::bigint[]) as m (id)
