-- What a chaos run records beside the tables of the product.
create schema chaos;

-- What producers committed, in the transaction of the enqueue itself.
create table chaos.ledger (id bigint primary key, kind text not null, at timestamptz not null default clock_timestamp());

-- What came of each cancel, in the transaction of the cancel itself.
create table chaos.canceled (id bigint primary key, verdict text not null, at timestamptz not null default clock_timestamp());

-- Every change of a job's state, in the order in which the changes of one job happened.
create table chaos.audit (
  seq bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  xid xid8 not null default pg_current_xact_id(),
  id bigint not null,
  old text,
  new text,
  lease_no bigint,
  old_lease_no bigint,
  owner uuid,
  old_expires_at timestamptz
);

-- The journal of the handlers, loaded at the end: one row for each execution.
create table chaos.execution (
  id bigint not null,
  lease_no bigint not null,
  attempt integer not null,
  supervisor text not null,
  pid integer not null,
  t0 timestamptz not null,
  t1 timestamptz
);

-- What the script did to the system.
create table chaos.fault (at timestamptz not null, kind text not null, target text not null, seconds float8 not null);

-- What supervisors said in their logs about single outcomes.
create table chaos.said (supervisor text not null, event text not null, id bigint not null, lease_no bigint not null);

create function chaos.note_live() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    insert into chaos.audit (id, new, lease_no) values (new.id, new.status, new.lease_no);
  elsif tg_op = 'UPDATE' then
    insert into chaos.audit (id, old, new, lease_no, old_lease_no, owner, old_expires_at)
    values (new.id, old.status, new.status, new.lease_no, old.lease_no, new.owner, old.lease_expires_at);
  else
    insert into chaos.audit (id, old, old_lease_no, old_expires_at)
    values (old.id, old.status, old.lease_no, old.lease_expires_at);
  end if;
  return null;
end $$;

create function chaos.note_final() returns trigger language plpgsql as $$
begin
  if tg_op <> 'INSERT' then
    raise exception 'a final state was changed: job %', old.id;
  end if;
  insert into chaos.audit (id, new, lease_no, owner) values (new.id, new.status, new.lease_no, new.owner);
  return null;
end $$;

create trigger chaos_insert after insert or delete on tasuki.job for each row execute function chaos.note_live();
create trigger chaos_update after update on tasuki.job for each row
  when (old.status is distinct from new.status or old.lease_no is distinct from new.lease_no)
  execute function chaos.note_live();
create trigger chaos_final after insert or update or delete on tasuki.job_archive
  for each row execute function chaos.note_final();
