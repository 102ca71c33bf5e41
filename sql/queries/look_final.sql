-- How many jobs of each queue ended in which state, as far back as the archive goes.
-- Locks: nothing. Reads the whole archive: run it under a statement_timeout.
select queue, status, count(*) as jobs
from tasuki.job_archive
group by queue, status
order by queue, status
