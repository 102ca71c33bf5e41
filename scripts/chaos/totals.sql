-- A chaos run in numbers.
SELECT
  (SELECT count(*) FROM chaos.ledger) AS jobs,
  (SELECT count(*) FROM chaos.execution) AS executions,
  (SELECT json_object_agg(status, n) FROM (SELECT status, count(*) AS n FROM tasuki.job_archive GROUP BY 1) AS x) AS "final states",
  (SELECT json_object_agg(kind, n) FROM (SELECT kind, count(*) AS n FROM tasuki.attempt GROUP BY 1) AS x) AS "attempts that did not end their job",
  (SELECT json_object_agg(kind, n) FROM
    (SELECT error ->> 'kind' AS kind, count(*) AS n FROM tasuki.job_archive WHERE status = 'failed' GROUP BY 1) AS x) AS "failed as",
  (SELECT json_object_agg(event, n) FROM (SELECT event, count(*) AS n FROM chaos.said GROUP BY 1) AS x) AS "finish verdicts beside applied",
  (SELECT json_object_agg(verdict, n) FROM (SELECT verdict, count(*) AS n FROM chaos.canceled GROUP BY 1) AS x) AS cancels,
  (SELECT sum(crashes) FROM tasuki.job_archive) AS "crashes charged",
  (SELECT count(*) FROM chaos.execution AS e JOIN chaos.execution AS o
     ON o.id = e.id AND o.lease_no > e.lease_no AND o.t0 < e.t1) AS "overlaps beside a frozen or cut off supervisor",
  (SELECT max(at - old_expires_at)::text FROM chaos.audit
    WHERE old = 'running' AND new = 'pending' AND lease_no > old_lease_no) AS "latest rescue after a lease's end"
