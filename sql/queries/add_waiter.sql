-- From now on, for a minute, the end of this job is told on the channel tasuki_done. Rows that somebody left are removed.
-- Locks: the rows that it removes. Index: none, the table has a row for each program that waits just now.
with stale as (
  delete from tasuki.waiter where expires_at < clock_timestamp()
)
insert into tasuki.waiter (job_id) values (%(id)s) returning id
