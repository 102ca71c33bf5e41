-- Take in many jobs with ids that were drawn for them. First what many jobs share, then what is each one's own.
-- Locks: nothing that exists. Index: all of the table's.
copy tasuki.job (scheduled_at, queue, handler, priority, max_attempts, limits, key, schedule, batch_id, id, payload) from stdin (format binary)
