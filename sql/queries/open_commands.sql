-- What a supervisor is asked and has not answered, oldest first. Locks: nothing. Index: command_owner.
select c.id, c.kind, c.job_id, c.lease_no, c.args::text
from tasuki.command as c
where c.owner = %(owner)s and c.reply is null and c.expires_at > coalesce(%(now)s::timestamptz, clock_timestamp())
order by c.id
limit %(most)s
