-- The attempts of a job that did not end it, in their order.
-- Locks: nothing. Index: attempt_job.
select a.lease_no, a.attempt, a.kind, a.started_at, a.ended_at, a.error::text as error, a.usage::text as usage, a.output
from tasuki.attempt as a
where a.job_id = %(id)s
order by a.lease_no
