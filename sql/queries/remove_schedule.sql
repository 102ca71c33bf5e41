-- Remove a schedule with its history, unless a living supervisor's application declares it. No row: there is none, or it is
-- declared. Locks: the rows it deletes. Index: primary key.
delete from tasuki.schedule as s
where
  s.name = %(name)s
  and (
    s.source = 'client'
    or not exists (
      select from tasuki.supervisor as v
      where s.name = any(v.schedules) and v.seen_at + v.lease_seconds * interval '1 second' >= now()
    )
  )
returning s.name
