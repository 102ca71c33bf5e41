-- How many jobs of these id ranges are not final. Locks: nothing. Index: primary key (one range for each).
select count(*)
from unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) as r (first_id, last_id)
cross join lateral (select from tasuki.job as j where j.id between r.first_id and r.last_id) as job
