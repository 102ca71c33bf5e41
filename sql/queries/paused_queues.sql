-- The queues that somebody has paused.
select q.name from tasuki.queue as q where q.paused_at is not null order by q.name
