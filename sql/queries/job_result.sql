-- The state of a job and, once it is final, its result and error; no row if it is unknown. Locks: nothing.
-- Indexes: primary key, job_archive_id.
select j.status, null::text as result, null::text as error from tasuki.job as j where j.id = %(id)s::bigint
union all
select a.status, a.result::text, a.error::text from tasuki.job_archive as a where a.id = %(id)s::bigint
limit 1
