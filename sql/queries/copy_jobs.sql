-- Take in many jobs with ids that were drawn for them. Locks: nothing that exists. Index: all of the table's.
copy tasuki.job (id, scheduled_at, queue, handler, priority, max_attempts, limits, key, payload) from stdin (format binary)
