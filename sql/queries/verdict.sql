-- What became of the attempts that finish.sql did not write. It must be a statement of its own, with a fresh snapshot:
-- "again" if the lease is still ours (somebody had the row locked), "duplicate" if an earlier finish of ours is on record
-- (rows that a rescue, or a release of lost leases, wrote name no owner), else "stale". `age` bounds how far back the
-- archive is read, so that not every day's partition is opened.
-- Locks: nothing. Indexes: primary key, attempt_job, job_archive_id.
select
  m.id,
  m.lease_no,
  case
    when (
      select true from tasuki.job as j where j.id = m.id and j.lease_no = m.lease_no and j.owner = %(owner)s limit 1
    ) then 'again'
    when known.kind is not null then 'duplicate'
    else 'stale'
  end as verdict,
  coalesce(known.kind, '') as kind
from unnest(%(ids)s::bigint[], %(lease_nos)s::bigint[]) as m (id, lease_no)
left join lateral (
  select a.kind
  from tasuki.attempt as a
  where
    a.job_id = m.id and a.lease_no = m.lease_no and a.owner = %(owner)s
    and a.ended_at >= now() - %(age)s * interval '1 second'
  union all
  select f.status
  from tasuki.job_archive as f
  where
    f.id = m.id and f.lease_no = m.lease_no and f.owner = %(owner)s
    and f.finished_at >= now() - %(age)s * interval '1 second'
  limit 1
) as known on true
