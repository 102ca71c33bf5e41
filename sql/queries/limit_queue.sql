-- Say how many jobs of a queue, and of one key in it, may run at a time in the whole fleet; null is no limit.
-- Locks: the queue's row, its running rows, those held back for their key. Indexes: job_owner, job_held_key.
select tasuki.limit_queue(%(queue)s::text, %(max_running)s::integer, %(max_running_per_key)s::integer)::text as done
