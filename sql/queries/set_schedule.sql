-- Let the jobs that this transaction inserts from here on belong to a schedule. Locks: nothing. Index: none.
select set_config('tasuki.schedule', %(schedule)s::text, true)
