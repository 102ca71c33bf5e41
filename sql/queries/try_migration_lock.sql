-- Become the one who migrates, or return false. The lock belongs to the session: it outlives the transactions between.
select pg_try_advisory_lock(7235421, 1)
