-- The state of a job, no row if it is unknown. Locks: nothing. Indexes: primary key, job_archive_id.
select j.status from tasuki.job as j where j.id = %(id)s::bigint
union all
select a.status from tasuki.job_archive as a where a.id = %(id)s::bigint
limit 1
