-- The newest batch of that name.
-- Locks: nothing. Index: batch_by_name.
select b.id from tasuki.batch as b where b.name = %(name)s order by b.id desc limit 1
