-- One at a time may look which jobs have been retried and retry the others: the next statement of this transaction sees
-- what everybody before has done.
-- Locks: an advisory one, until the transaction ends; waits for it.
select pg_advisory_xact_lock(7235421, 4)
