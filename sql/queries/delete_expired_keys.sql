-- Delete unique keys whose interval is over: anybody could have taken them again. Returns how many there were, at most
-- `most`.
-- Locks: their rows, skipping those that somebody else holds. Index: unique_key_expired.
with expired as materialized (
  select u.key
  from tasuki.unique_key as u
  where u.expires_at <= now()
  order by u.expires_at
  limit %(most)s
  for update skip locked
),
gone as (
  delete from tasuki.unique_key where key = any(array(select key from expired))
)
select count(*) from expired
