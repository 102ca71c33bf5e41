-- Remember that everything of this queue that finished before is deleted.
-- Locks: the queue's row. Index: primary key.
update tasuki.queue set kept_from = %(at)s where name = %(queue)s
