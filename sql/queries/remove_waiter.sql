-- Nobody waits any more, in the place of this row. Locks: the row. Index: primary key.
delete from tasuki.waiter where id = %(waiter)s
