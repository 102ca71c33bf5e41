-- Handlers that living supervisors of several applications bring under the same name: how many, one of them, and those
-- applications, each with one of the hosts that it runs on. Locks: nothing. Reads the supervisors.
with brought as (
  select h.name, s.app, min(s.host) as host
  from tasuki.supervisor as s
  cross join lateral unnest(s.handlers) as h (name)
  where s.app is not null and s.seen_at + s.lease_seconds * interval '1 second' >= clock_timestamp()
  group by h.name, s.app
),
shared as (
  select brought.name, array_agg(brought.app || ' on ' || brought.host order by brought.app) as apps
  from brought
  group by brought.name
  having count(*) > 1
)
select count(*) as handlers, min(shared.name) as example, shared.apps
from shared
group by shared.apps
order by shared.apps
