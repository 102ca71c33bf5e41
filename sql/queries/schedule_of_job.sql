-- The schedule that a live job comes from. Locks: nothing. Index: primary key.
select j.schedule from tasuki.job as j where j.id = %(id)s
