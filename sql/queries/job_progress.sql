-- How far a running job says it is, no row if it says nothing or does not run. Locks: nothing. Index: primary key.
select j.progress::float8, coalesce(j.progress_note, '')
from tasuki.job as j
where j.id = %(id)s::bigint and (j.progress is not null or j.progress_note is not null)
