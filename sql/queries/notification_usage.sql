-- How full the queue of notifications is, from 0 to 1: when it is full, whoever notifies is refused at commit.
-- Locks: nothing.
select pg_notification_queue_usage()
