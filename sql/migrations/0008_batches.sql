-- Jobs that belong together, and jobs that wait for others.

-- No row counts as jobs end: a batch has ended when none of its jobs is live any more, and then its numbers are written once.
create table tasuki.batch (
  id bigint generated always as identity primary key,
  name text,
  created_at timestamptz not null default clock_timestamp(),
  -- Until then jobs may still be added, and the batch can't end.
  sealed_at timestamptz,
  total bigint not null default 0,
  -- Jobs to insert at its end, each as an object of the columns of tasuki.job.
  on_complete jsonb,
  on_success jsonb,
  on_failure jsonb,
  fired text[] not null default '{}',
  ended_at timestamptz,
  completed bigint,
  failed bigint,
  canceled bigint,
  -- What a map needs to be taken up again.
  state jsonb not null default '{}',
  constraint batch_name check (length(name) between 1 and 200),
  constraint batch_end check (ended_at is null or sealed_at is not null)
);
create index batch_open on tasuki.batch (id) where ended_at is null;
create index batch_ended on tasuki.batch (ended_at) where ended_at is not null;
create index batch_by_name on tasuki.batch (name, id) where name is not null;

alter table tasuki.job
  add column batch_id bigint,
  add column has_dependents boolean not null default false;
create index job_batch on tasuki.job (batch_id) where batch_id is not null;
alter table tasuki.job_archive add column batch_id bigint;
create index job_archive_batch on tasuki.job_archive (batch_id, id) where batch_id is not null;

-- Inserts a job that a batch keeps for its end, and those that follow it: they wait for it. Returns its id.
create function tasuki.insert_follow_up(spec jsonb, needs bigint default null) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  follow_up bigint;
begin
  insert into tasuki.job as j (queue, handler, payload, priority, max_attempts, scheduled_at, limits, key)
  values (
    spec ->> 'queue', spec ->> 'handler', spec -> 'payload', (spec ->> 'priority')::smallint,
    (spec ->> 'max_attempts')::integer, clock_timestamp() + coalesce((spec ->> 'delay')::float8, 0) * interval '1 second',
    nullif(spec -> 'limits', 'null'), spec ->> 'key'
  )
  returning j.id into follow_up;
  if insert_follow_up.needs is null then
    perform pg_notify('tasuki_job', (spec ->> 'queue') || ' 0');
  else
    perform tasuki.depend(follow_up, array[insert_follow_up.needs], spec ->> 'on_need_failed');
  end if;
  perform tasuki.insert_follow_up(f.spec, follow_up)
  from jsonb_array_elements(spec -> 'followers') with ordinality as f (spec, ordinal)
  order by f.ordinal;
  return follow_up;
end
$function$;

-- Ends a batch if it is over: writes its numbers and inserts its follow-up jobs, each of them at most once, whoever calls and
-- how often. Returns how many of its jobs are live still, counted to a thousand at most; null if it has ended already or is
-- not sealed. A failed job that was tried again as another job counts as that one.
create function tasuki.close_batch(batch bigint) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
as $function$
declare
  live bigint;
  it record;
  numbers record;
  wanted text[];
  follow_up text;
begin
  select count(*) into live from (select from tasuki.job as j where j.batch_id = close_batch.batch limit 1000) as counted;
  if live > 0 then
    return live;
  end if;
  select b.* into it from tasuki.batch as b where b.id = close_batch.batch for update;
  if it.id is null or it.ended_at is not null or it.sealed_at is null then
    return null;
  end if;
  -- Seen with the batch locked: whoever adds jobs to it has locked it too.
  if exists (select from tasuki.job as j where j.batch_id = close_batch.batch) then
    return 1;
  end if;
  select
    count(*) filter (where a.status = 'completed') as completed,
    count(*) filter (where a.status = 'failed') as failed,
    count(*) filter (where a.status = 'canceled') as canceled
  into numbers
  from tasuki.job_archive as a
  where
    a.batch_id = close_batch.batch
    and (a.status = 'completed' or not exists (
      select from tasuki.job_archive as r where r.retry_of = a.id and r.batch_id = a.batch_id
    ));
  wanted := array[
    case when it.on_complete is not null then 'complete' end,
    case
      when numbers.failed + numbers.canceled = 0 and it.on_success is not null then 'success'
      when numbers.failed + numbers.canceled > 0 and it.on_failure is not null then 'failure'
    end
  ];
  foreach follow_up in array array_remove(wanted, null) loop
    if not follow_up = any(it.fired) then
      perform tasuki.insert_follow_up(
        case follow_up when 'complete' then it.on_complete when 'success' then it.on_success else it.on_failure end
      );
    end if;
  end loop;
  update tasuki.batch as b
  set
    ended_at = clock_timestamp(),
    completed = numbers.completed,
    failed = numbers.failed,
    canceled = numbers.canceled,
    fired = array(select distinct f.name from unnest(b.fired || wanted) as f (name) where f.name is not null order by 1)
  where b.id = close_batch.batch;
  perform pg_notify('tasuki_batch', close_batch.batch::text);
  return 0;
end
$function$;

-- Which jobs a job waits for. A row goes when the job it names has ended.
create table tasuki.dependency (
  job_id bigint not null,
  needs_id bigint not null,
  -- What becomes of the job that waits if the other fails or is canceled: it is canceled, or runs all the same.
  on_failure text not null,
  primary key (needs_id, job_id),
  constraint dependency_on_failure check (on_failure in ('cancel', 'run')),
  constraint dependency_other check (job_id <> needs_id)
);
create index dependency_job on tasuki.dependency (job_id);

-- Cancels a job that waits for one that did not complete. Its own dependents follow by the trigger.
create function tasuki.cancel_dependent(id bigint, needs bigint, status text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  with removed as (
    delete from tasuki.job as j where j.id = cancel_dependent.id and j.status = 'pending' returning j.*
  )
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
    created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, batch_id, retry_of
  )
  select
    r.id, r.handler, r.queue, 'canceled', r.payload, r.attempt, r.max_attempts, r.crashes, r.priority,
    jsonb_build_object(
      'kind', 'canceled', 'type', 'Dependency',
      'message', format('job %s, which it waited for, has %s', cancel_dependent.needs, cancel_dependent.status)
    ),
    r.created_at, r.scheduled_at, clock_timestamp(), r.lease_no, null, r.limits, r.key, r.unique_key, r.batch_id, r.retry_of
  from removed as r;
end
$function$;

-- A job has ended that others wait for. Each of them is locked before what it still waits for is counted: of two that end
-- at the same time, the second sees what the first one did.
create function tasuki.free_dependents() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  ended text;
  freed text;
  dependent record;
begin
  select a.status into ended from tasuki.job_archive as a where a.id = old.id order by a.finished_at desc limit 1;
  ended := coalesce(ended, 'deleted');
  for dependent in
    select d.job_id, d.on_failure from tasuki.dependency as d where d.needs_id = old.id order by d.job_id
  loop
    perform from tasuki.job as j where j.id = dependent.job_id for update;
    delete from tasuki.dependency as d where d.needs_id = old.id and d.job_id = dependent.job_id;
    if ended <> 'completed' and dependent.on_failure = 'cancel' then
      delete from tasuki.dependency as d where d.job_id = dependent.job_id;
      perform tasuki.cancel_dependent(dependent.job_id, old.id, ended);
    elsif not exists (select from tasuki.dependency as d where d.job_id = dependent.job_id) then
      update tasuki.job as j
      set held_by = null, scheduled_at = greatest(j.scheduled_at, clock_timestamp())
      where j.id = dependent.job_id and j.held_by = 'dependency'
      returning j.queue into freed;
      if found then
        perform pg_notify('tasuki_job', freed || ' 0');
      end if;
    end if;
  end loop;
  return null;
end
$function$;
create trigger job_free_dependents after delete on tasuki.job
  for each row when (old.has_dependents) execute function tasuki.free_dependents();

-- A job that waited for others and is gone waits for nothing any more.
create function tasuki.forget_dependencies() returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
begin
  delete from tasuki.dependency as d where d.job_id = old.id;
  return null;
end
$function$;
create trigger job_forget_dependencies after delete on tasuki.job
  for each row when (old.held_by = 'dependency') execute function tasuki.forget_dependencies();

-- Makes a pending job wait for others, in the transaction that has inserted it. Returns 'held', 'free' if all of them have
-- completed already, 'canceled' if one has not and that is what was asked for. Raises an error for an id that nobody knows.
create function tasuki.depend(job bigint, needs bigint[], on_failure text default 'cancel') returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $function$
declare
  need bigint;
  ended text;
  held boolean := false;
begin
  for need in select distinct n.id from unnest(depend.needs) as n (id) order by 1 loop
    update tasuki.job as j set has_dependents = true where j.id = need;
    if found then
      insert into tasuki.dependency (job_id, needs_id, on_failure) values (depend.job, need, depend.on_failure)
      on conflict do nothing;
      held := true;
      continue;
    end if;
    select a.status into ended from tasuki.job_archive as a where a.id = need order by a.finished_at desc limit 1;
    if not found then
      raise exception 'job % can''t wait for job %: there is no such job', depend.job, need
        using errcode = 'foreign_key_violation';
    end if;
    if ended <> 'completed' and depend.on_failure = 'cancel' then
      delete from tasuki.dependency as d where d.job_id = depend.job;
      perform tasuki.cancel_dependent(depend.job, need, ended);
      return 'canceled';
    end if;
  end loop;
  if held then
    update tasuki.job as j set held_by = 'dependency' where j.id = depend.job and j.status = 'pending';
    return 'held';
  end if;
  return 'free';
end
$function$;
