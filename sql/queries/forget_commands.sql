-- Drop what nobody waits for any more: those who asked went away. Locks: those rows, skipping what others hold. Index:
-- none, the table is all but empty.
delete from tasuki.command as c
where c.id = any(
  array(
    select o.id
    from tasuki.command as o
    where o.expires_at < coalesce(%(now)s::timestamptz, clock_timestamp())
    order by o.id
    limit %(most)s
    for update skip locked
  )
)
