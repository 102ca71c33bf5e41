-- Insert one job with what its handler declared, as tasuki.enqueue does; what is null is not given. Due at `at`, else
-- `delay` seconds from now. Locks: nothing that exists. Index: all of the table's.
select tasuki.enqueue(
  handler => %(handler)s::text,
  payload => %(payload)s::jsonb,
  queue => %(queue)s::text,
  priority => %(priority)s::integer,
  scheduled_at => coalesce(
    %(at)s::timestamptz, clock_timestamp() + %(delay)s::float8 * interval '1 second'
  )
)
