-- What must be true after a chaos run. Each statement returns the rows that break what its headline promises.
-- The only parameter is `lease`, in seconds.

-- stuck: no running job is long past its lease
SELECT id, lease_expires_at FROM tasuki.job WHERE status = 'running' AND lease_expires_at < now() - interval '2 min';

-- unfinished: every job has ended
SELECT id, handler, status, attempt FROM tasuki.job;

-- lost: every job that a producer committed is there, once
SELECT l.id, l.kind, count(j.id), count(a.id) FROM chaos.ledger l
 LEFT JOIN tasuki.job j ON j.id = l.id LEFT JOIN tasuki.job_archive a ON a.id = l.id
GROUP BY l.id, l.kind HAVING count(j.id) + count(a.id) <> 1;

-- invented: no job exists that no producer committed
SELECT x.id, x.handler FROM (SELECT id, handler FROM tasuki.job UNION ALL SELECT id, handler FROM tasuki.job_archive) x
 WHERE NOT EXISTS (SELECT FROM chaos.ledger l WHERE l.id = x.id)
 UNION ALL
SELECT e.id, 'ran, though it was rolled back' FROM chaos.execution e
 WHERE NOT EXISTS (SELECT FROM chaos.ledger l WHERE l.id = e.id);

-- transitions: states change only as they may
WITH change AS (
  SELECT id, old, new, seq FROM chaos.audit WHERE old IS NOT NULL AND new IS NOT NULL
   UNION ALL
  SELECT coalesce(d.id, f.id), d.old, f.new, coalesce(d.seq, f.seq)
    FROM (SELECT * FROM chaos.audit WHERE new IS NULL) d
    FULL JOIN (SELECT * FROM chaos.audit WHERE old IS NULL AND new <> 'pending') f ON f.id = d.id AND f.xid = d.xid
)
SELECT id, old, new, seq FROM change
 WHERE coalesce((old, new) NOT IN (('pending', 'running'), ('pending', 'canceled'), ('running', 'pending'),
       ('running', 'completed'), ('running', 'failed'), ('running', 'canceled')), true);

-- one end: every final job became so exactly once
SELECT a.id, count(t.seq) FROM tasuki.job_archive a
 LEFT JOIN chaos.audit t ON t.id = a.id AND t.new IN ('completed', 'failed', 'canceled')
GROUP BY a.id HAVING count(t.seq) <> 1;

-- lease_no falls: a job's lease_no never falls
SELECT id, seq, lease_no, before FROM (
  SELECT id, seq, lease_no, lag(lease_no) OVER (PARTITION BY id ORDER BY seq) AS before FROM chaos.audit WHERE new IS NOT NULL
) AS x
WHERE lease_no < before;

-- leased twice: no (job, lease_no) was given out twice
SELECT id, lease_no, count(*) FROM chaos.audit WHERE new = 'running' GROUP BY id, lease_no HAVING count(*) > 1;

-- dishonest duplicate: what finish called a duplicate had been written by the same lease
SELECT s.* FROM chaos.said s WHERE s.event = 'duplicate'
AND NOT EXISTS (SELECT FROM tasuki.job_archive a WHERE a.id = s.id AND a.lease_no = s.lease_no AND a.owner IS NOT NULL)
AND NOT EXISTS (SELECT FROM tasuki.attempt t WHERE t.job_id = s.id AND t.lease_no = s.lease_no AND t.kind <> 'rescue');

-- dishonest stale: what finish called stale was not written
SELECT s.* FROM chaos.said s WHERE s.event = 'stale'
AND (EXISTS (SELECT FROM tasuki.job_archive a WHERE a.id = s.id AND a.lease_no = s.lease_no AND a.owner IS NOT NULL)
  OR EXISTS (SELECT FROM tasuki.attempt t WHERE t.job_id = s.id AND t.lease_no = s.lease_no
                AND t.kind IN ('retry', 'snooze')));

-- unearned: a completed job has an execution of its last lease that really ended
SELECT a.id, a.lease_no, a.handler FROM tasuki.job_archive a WHERE a.status = 'completed'
AND NOT EXISTS (SELECT FROM chaos.execution e
                 WHERE e.id = a.id AND e.lease_no = a.lease_no AND e.t1 IS NOT NULL);

-- executed twice: one lease runs the handler at most once
SELECT id, lease_no, count(*) FROM chaos.execution GROUP BY id, lease_no HAVING count(*) > 1;

-- executed unleased: the handler runs only under a lease, after it was given out
SELECT e.id, e.lease_no, e.supervisor FROM chaos.execution e
WHERE NOT EXISTS (SELECT FROM chaos.audit t
      WHERE t.id = e.id AND t.lease_no = e.lease_no AND t.new = 'running' AND t.at <= e.t0 + interval '50 ms');

-- started and refunded: what was given back as never started has not run
SELECT e.id, e.lease_no, e.supervisor FROM chaos.execution e
JOIN tasuki.attempt t ON t.job_id = e.id AND t.lease_no = e.lease_no AND t.kind = 'release' AND t.started_at IS NULL;

-- unrecorded: of every execution it is on record how it ended
SELECT e.id, e.lease_no, e.supervisor FROM chaos.execution e
WHERE NOT EXISTS (SELECT FROM tasuki.attempt t WHERE t.job_id = e.id AND t.lease_no = e.lease_no)
  AND NOT EXISTS (SELECT FROM tasuki.job_archive a WHERE a.id = e.id
                     AND (a.lease_no = e.lease_no OR (a.lease_no = e.lease_no + 1 AND a.owner IS NULL)));

-- at most once: a job with max_attempts=1 was started at most once
SELECT e.id, count(*) FROM chaos.execution e JOIN chaos.ledger l ON l.id = e.id
WHERE l.kind = 'once' GROUP BY e.id HAVING count(*) > 1;

-- overlap: two executions of a job overlap only if a supervisor was frozen or cut off then
SELECT e.id, e.lease_no, e.supervisor, e.t0, e.t1, o.lease_no, o.supervisor, o.t0
 FROM chaos.execution e JOIN chaos.execution o ON o.id = e.id AND o.lease_no > e.lease_no AND o.t0 < e.t1
WHERE NOT EXISTS (
      SELECT FROM chaos.fault f
       WHERE (f.kind IN ('supervisor frozen', 'network stands still') OR f.kind LIKE 'database%%')
         AND f.at < o.t0 AND f.at + make_interval(secs => f.seconds + 2 * %(lease)s) > e.t0);

-- canceled and ran: an accepted cancel is final: canceled at once, or never leased again
SELECT c.id, c.verdict, a.status FROM chaos.canceled c JOIN tasuki.job_archive a ON a.id = c.id
WHERE (c.verdict = 'canceled' AND a.status <> 'canceled')
   OR EXISTS (SELECT FROM chaos.audit t WHERE t.id = c.id AND t.new = 'running' AND t.at > c.at
                 AND c.verdict IN ('canceled', 'requested'))
   OR c.verdict = 'unknown';

-- canceled unasked: only what somebody canceled is canceled
SELECT a.id, a.error FROM tasuki.job_archive a WHERE a.status = 'canceled'
AND NOT EXISTS (SELECT FROM chaos.canceled c WHERE c.id = a.id AND c.verdict IN ('canceled', 'requested'));

-- limits: attempts and crashes stay within their limits
SELECT id, attempt, max_attempts, crashes FROM tasuki.job_archive
WHERE attempt > max_attempts OR crashes > 3 OR crashes > attempt;

-- pills: every poison pill failed as one
SELECT a.id, a.status, a.error FROM chaos.ledger l JOIN tasuki.job_archive a ON a.id = l.id
WHERE l.kind = 'pill' AND (a.status <> 'failed' OR a.error ->> 'kind' <> 'poison' OR a.error ->> 'signal' IS NULL)
  -- How a child died whose forkserver had died before it, nobody can know.
  AND NOT (a.error ->> 'signal' IS NULL AND EXISTS (SELECT FROM chaos.fault f WHERE f.kind = 'forkserver killed'));

-- outcomes: every other job ended as its kind says, unless it was canceled, killed too often, or its only try was lost
SELECT a.id, l.kind, a.status, a.attempt, a.error FROM chaos.ledger l JOIN tasuki.job_archive a ON a.id = l.id
WHERE l.kind <> 'pill' AND a.status <> 'canceled'
  AND CASE WHEN a.status = 'completed' THEN l.kind = 'hopeless'
           WHEN l.kind = 'hopeless' THEN a.attempt < a.max_attempts AND a.error ->> 'kind' <> 'poison'
           WHEN l.kind = 'once' THEN a.error ->> 'kind' NOT IN ('crash', 'lost', 'poison', 'interrupted')
           ELSE a.error ->> 'kind' <> 'poison' END;

-- blame: no more crashes are charged to innocent jobs than children were killed
SELECT charged, killed FROM
 (SELECT coalesce(sum(a.crashes), 0) AS charged FROM tasuki.job_archive a JOIN chaos.ledger l ON l.id = a.id
   WHERE l.kind <> 'pill') c,
 (SELECT count(*) AS killed FROM chaos.fault WHERE kind LIKE 'child %%') k
WHERE charged > killed;

-- late rescue: what a dead supervisor held was taken back within two leases of its end, outages apart
SELECT t.id, t.lease_no, t.at - t.old_expires_at AS late FROM chaos.audit t
WHERE t.old = 'running' AND t.new = 'pending' AND t.lease_no > t.old_lease_no
  AND t.at - t.old_expires_at > make_interval(secs => 2 * %(lease)s + 5)
  AND NOT EXISTS (SELECT FROM chaos.fault f
       WHERE (f.kind LIKE 'database%%' OR f.kind LIKE 'network%%' OR f.kind LIKE 'supervisor%%')
         AND f.at < t.at AND f.at + make_interval(secs => f.seconds + 3 * %(lease)s) > t.old_expires_at);

-- sessions: no session is idle in a transaction, none waits for a lock
SELECT pid, application_name, state, wait_event_type, query FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (state LIKE 'idle in transaction%%' OR wait_event_type = 'Lock');

-- notifications: the notification queue is as good as empty
SELECT pg_notification_queue_usage() WHERE pg_notification_queue_usage() > 0.01;

-- dead rows: after a VACUUM the live table holds no dead rows: nobody keeps an old snapshot
SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'tasuki' AND relname = 'job' AND n_dead_tup > 100;

-- registered: supervisors that were told to stop have said goodbye
SELECT owner, host, pid, seen_at FROM tasuki.supervisor;
