-- Put jobs that were inserted one by one into a batch. Locks: their rows. Index: primary key.
update tasuki.job as j set batch_id = %(id)s where j.id = any(%(ids)s::bigint[]) and j.batch_id is null
