-- The migrations that this database has had.
select number, name, checksum from tasuki.migration order by number
