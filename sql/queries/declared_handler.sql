-- What a handler declared when a supervisor of its application last started; no row if none ever did.
-- Locks: nothing. Index: primary key.
select h.queue, h.priority, h.max_attempts from tasuki.handler as h where h.name = %(handler)s
