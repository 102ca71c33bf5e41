-- Say that it is done.
-- Locks: the task's row. Index: primary key.
update tasuki.upkeep set ended_at = clock_timestamp() where task = %(task)s
