-- Who waits for the end of a job, so that finishing notifies those and nobody else. Nothing is lost with these rows: whoever
-- waits looks now and then as well. So they are not logged.
create unlogged table tasuki.waiter (
  job_id bigint not null,
  expires_at timestamptz not null default clock_timestamp() + interval '1 minute',
  id bigint generated always as identity primary key
);
