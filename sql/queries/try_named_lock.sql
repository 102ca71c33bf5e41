-- Take the lock of that name for this session, or say that another one holds it; and which process of the server this is,
-- because behind a pooler that shares sessions the lock would be anybody's. Locks: the name. Index: none.
select pg_try_advisory_lock(7235422, hashtext(%(name)s)) as is_taken, pg_backend_pid() as pid
