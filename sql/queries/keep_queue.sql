-- How long finished jobs of this queue are kept, if shorter than all others; null: as long as they.
-- Locks: the queue's row. Index: primary key.
insert into tasuki.queue (name, keep_for) values (%(queue)s, %(seconds)s::float8 * interval '1 second')
on conflict (name) do update set keep_for = excluded.keep_for
