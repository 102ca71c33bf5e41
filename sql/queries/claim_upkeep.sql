-- Take on what one of the fleet does for all of them, if nobody has begun with it for `every` seconds; no row otherwise.
-- Locks: the task's row. Index: primary key.
insert into tasuki.upkeep as u (task, begun_at) values (%(task)s, clock_timestamp())
on conflict (task) do update set begun_at = clock_timestamp(), ended_at = null
where u.begun_at <= clock_timestamp() - %(every)s * interval '1 second'
returning true
