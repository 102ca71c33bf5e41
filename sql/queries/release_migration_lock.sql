-- Let the next one migrate.
select pg_advisory_unlock(7235421, 1)
