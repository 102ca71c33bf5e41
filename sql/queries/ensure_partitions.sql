-- Makes sure that the partitions from yesterday to `days` ahead stand; returns how many were missing.
-- Locks: if any is missing, an advisory one and SHARE UPDATE EXCLUSIVE on the parents, which lets reads and writes through.
select tasuki.ensure_partitions(%(days)s)
