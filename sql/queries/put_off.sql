-- Let a job that is to run again be due so much later: the clock of a test is ahead of the database's. Locks: its row.
-- Index: primary key.
update tasuki.job as j
set scheduled_at = j.scheduled_at + %(ahead)s::interval
where j.id = %(id)s and j.status = 'pending'
