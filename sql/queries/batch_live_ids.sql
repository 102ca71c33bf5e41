-- Live jobs of a batch behind a given id, in order. Locks: nothing. Index: job_batch.
select j.id from tasuki.job as j where j.batch_id = %(id)s and j.id > %(behind)s order by j.id limit %(most)s
