-- Lease from one queue that has limits; see the function. Locks: the queue's row while it looks, and the rows it takes.
-- Indexes: job_lease, job_counted.
select *
from tasuki.lease_limited(
  %(queue)s::text, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb, %(owner)s::uuid, %(lease_for)s::float8,
  %(most)s::integer, %(now)s::timestamptz
)
