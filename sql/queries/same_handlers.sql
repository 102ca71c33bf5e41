-- Other applications of which a living supervisor brings handlers of these names: each with those names, and one of the hosts
-- that it runs on. Locks: nothing. Reads the supervisors.
select s.app, array_agg(distinct h.name order by h.name) as handlers, min(s.host) as host
from tasuki.supervisor as s
cross join lateral unnest(s.handlers) as h (name)
where
  s.owner <> %(owner)s
  and s.app <> %(app)s
  and s.seen_at + s.lease_seconds * interval '1 second' >= clock_timestamp()
  and h.name = any(%(handlers)s::text[])
group by s.app
order by s.app
