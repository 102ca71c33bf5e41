-- What a job's last attempt left for the next. Locks: nothing. Index: primary key.
select c.state::text from tasuki.checkpoint as c where c.job_id = %(id)s
