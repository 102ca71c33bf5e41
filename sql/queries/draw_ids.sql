-- Draw ids for jobs to copy in, as ranges: others may draw at the same time, and only then they are sorted out. With them
-- the clock that due times count from. Locks: nothing. Index: none.
with drawn as materialized (
  select nextval('tasuki.job_id_seq') as id, s.n from generate_series(1, %(count)s::integer) as s (n)
),
whole as materialized (
  select min(id) as first_id, max(id) as last_id, max(id) - min(id) + 1 = count(*) as is_one from drawn
)
select first_id, last_id, clock_timestamp() as now from whole where is_one
union all
select min(id), max(id), clock_timestamp() from drawn where not (select is_one from whole) group by id - n
order by 1
