-- The batch with that id, if one is given and there is such a batch; else the newest one of that name.
-- Locks: nothing. Indexes: primary key, batch_by_name.
select coalesce(
  (select b.id from tasuki.batch as b where b.id = %(id)s::bigint),
  (select b.id from tasuki.batch as b where b.name = %(name)s order by b.id desc limit 1)
) as id
