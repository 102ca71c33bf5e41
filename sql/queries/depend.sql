-- Make a job wait for others; see the function. Locks: the rows of those it waits for. Index: primary key.
select tasuki.depend(%(id)s::bigint, %(ids)s::bigint[], %(on_failure)s::text)
