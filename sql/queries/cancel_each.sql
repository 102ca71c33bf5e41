-- Cancel jobs, in the order of their ids; what came of each. Locks: their rows, and waits for them. Index: primary key.
select asked.id, tasuki.cancel(asked.id) from unnest(%(ids)s::bigint[]) as asked (id)
