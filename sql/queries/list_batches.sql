-- The newest batches, or those of one name, before a given id. Locks: nothing. Indexes: primary key, batch_by_name.
select b.id, b.name, b.created_at, b.sealed_at is not null, b.total, b.ended_at, b.completed, b.failed, b.canceled
from tasuki.batch as b
where
  (%(name)s::text is null or b.name = %(name)s::text)
  and (%(before)s::bigint is null or b.id < %(before)s::bigint)
order by b.id desc
limit %(most)s
