-- Begin a batch. Locks: nothing that exists.
insert into tasuki.batch (name, on_complete, on_success, on_failure, state)
values (
  %(name)s::text, %(on_complete)s::text::jsonb, %(on_success)s::text::jsonb, %(on_failure)s::text::jsonb,
  %(state)s::text::jsonb
)
returning id
