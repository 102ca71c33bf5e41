-- Answer a command. Whoever asked may have given up, and then there is no row. Locks: its row. Index: primary key.
update tasuki.command as c
set reply = %(reply)s::jsonb
where c.id = %(id)s::bigint and c.reply is null
