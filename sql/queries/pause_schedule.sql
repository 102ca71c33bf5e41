-- Pause a schedule, or let it go on: ticks in between never fire. No row: there is no such schedule.
-- Locks: its row. Index: primary key.
update tasuki.schedule as s
set
  paused_at = case when %(is_paused)s::boolean then coalesce(s.paused_at, clock_timestamp()) end,
  decided_until = case
    when not %(is_paused)s::boolean and s.paused_at is not null then greatest(s.decided_until, clock_timestamp())
    else s.decided_until
  end
where s.name = %(name)s
returning s.name, pg_notify('tasuki_schedule', '')::text as told
