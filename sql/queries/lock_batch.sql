-- Lock a batch for the rest of the transaction: the next statement sees what everybody before has done to it.
-- Locks: its row. Index: primary key.
select from tasuki.batch as b where b.id = %(id)s for update
