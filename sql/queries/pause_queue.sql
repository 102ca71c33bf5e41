-- Lease nothing more from this queue; true if it was open before.
-- Locks: the queue's row. Index: primary key.
insert into tasuki.queue as q (name, paused_at) values (%(queue)s, clock_timestamp())
on conflict (name) do update set paused_at = clock_timestamp() where q.paused_at is null
returning true
