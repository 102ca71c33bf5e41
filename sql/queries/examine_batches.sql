-- Batches that have been filled for more than a day: their program may have ended in the middle.
-- Locks: nothing. Index: batch_open.
select count(*) as batches, min(b.id) as example
from tasuki.batch as b
where b.ended_at is null and b.sealed_at is null and b.created_at < clock_timestamp() - interval '1 day'
