-- Make this supervisor known, with what it works on; again when that changes, or somebody may have forgotten it. When it
-- was last seen is the heartbeat's to say. Index: primary key.
insert into tasuki.supervisor as s (
  owner, host, pid, pid_started, boot_id, pid_ns, version, procs, queues, handlers, lease_seconds, schedules, app
)
values (
  %(owner)s, %(host)s, %(pid)s, %(pid_started)s, %(boot_id)s, %(pid_ns)s, %(version)s, %(procs)s, %(queues)s::text[],
  %(handlers)s::text[], %(lease_seconds)s, %(schedules)s::text[], %(app)s
)
on conflict (owner) do update
set
  version = excluded.version,
  procs = excluded.procs,
  queues = excluded.queues,
  handlers = excluded.handlers,
  lease_seconds = excluded.lease_seconds,
  schedules = excluded.schedules,
  app = excluded.app
