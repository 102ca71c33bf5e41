-- Keep the newest `keep` rows of history of each of these live jobs. Index: attempt_job.
delete from tasuki.attempt as a
using unnest(%(ids)s::bigint[]) as m (id)
cross join lateral (
  select x.lease_no from tasuki.attempt as x where x.job_id = m.id order by x.lease_no desc offset %(keep)s limit 1
) as last_surplus
where a.job_id = m.id and a.lease_no <= last_surplus.lease_no
