-- The database's clock, not the transaction's start. Locks: nothing. Index: none.
select clock_timestamp()
