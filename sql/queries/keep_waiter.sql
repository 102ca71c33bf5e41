-- Go on waiting for another minute. Locks: the row. Index: primary key.
update tasuki.waiter set expires_at = clock_timestamp() + interval '1 minute' where id = %(waiter)s
