-- Which of a running job's checkpoints is the newer one: a statement that its supervisor has given up may still run.

alter table tasuki.checkpoint add column version bigint not null default 0;
