-- Since when somebody has last begun with a task of the whole fleet, and since when supervisors have been there to do it.
-- Locks: nothing. Reads small tables.
select
  extract(epoch from clock_timestamp() - (select u.begun_at from tasuki.upkeep as u where u.task = 'retention'))::float8 as begun_ago,
  (
    select u.ended_at is not null from tasuki.upkeep as u where u.task = 'retention'
  ) as has_ended,
  (
    select extract(epoch from clock_timestamp() - min(s.started_at))::float8
    from tasuki.supervisor as s
    where s.seen_at + s.lease_seconds * interval '1 second' >= clock_timestamp()
  ) as supervised_for
