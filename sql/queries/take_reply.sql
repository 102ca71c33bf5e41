-- The answer to a command, which is over with that; no row while there is none. With `is_last` it is over in any case.
-- Locks: its row. Index: primary key.
delete from tasuki.command as c
where c.id = %(id)s::bigint and (c.reply is not null or %(is_last)s::boolean)
returning c.reply::text
