-- Forget a supervisor, unless a running job still names it: rescue needs the row then. Its handlers are remembered as seen
-- until now. Indexes: primary keys, job_owner.
with gone as (
  delete from tasuki.supervisor as s
  where
    s.owner = %(owner)s
    and not exists (select from tasuki.job as j where j.status = 'running' and j.owner = %(owner)s)
  returning s.handlers, s.seen_at
),
seen as (
  update tasuki.handler as h
  set last_seen = greatest(h.last_seen, gone.seen_at)
  from gone
  where h.name = any(gone.handlers)
)
select count(*) from gone
