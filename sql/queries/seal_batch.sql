-- Say how many jobs were added to a batch, and whether these were the last. Locks: the batch's row. Index: primary key.
update tasuki.batch as b
set
  total = b.total + %(count)s::bigint,
  sealed_at = case when %(is_sealed)s::boolean then coalesce(b.sealed_at, clock_timestamp()) else b.sealed_at end,
  state = coalesce(%(state)s::text::jsonb, b.state)
where b.id = %(id)s
