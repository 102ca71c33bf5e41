-- Draw ids for jobs to copy in, as ranges: others may draw at the same time. With them the clock that due times count from.
-- Locks: nothing. Index: none.
select min(drawn.id) as first_id, max(drawn.id) as last_id, max(drawn.now) as now
from (
  select s.id, s.id - row_number() over (order by s.id) as run, s.now
  from (
    select nextval('tasuki.job_id_seq') as id, clock_timestamp() as now
    from generate_series(1, %(count)s::integer)
  ) as s
) as drawn
group by drawn.run
order by 1
