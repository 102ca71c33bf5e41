-- Try failed and canceled jobs of a batch again; how many. Locks: the batch's row. Index: job_archive_batch.
select tasuki.retry_batch(%(id)s, %(most)s::integer)
