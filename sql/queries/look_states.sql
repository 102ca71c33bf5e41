-- Where these jobs stand; those that are nowhere do not come back.
-- Locks: nothing. Indexes: primary key, job_archive_id.
select j.id, j.status from tasuki.job as j where j.id = any(%(ids)s::bigint[])
union all
select a.id, a.status from tasuki.job_archive as a where a.id = any(%(ids)s::bigint[])
