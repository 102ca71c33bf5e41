"""What happened to each row, written down by triggers, and the rules that it must obey whoever did it."""

from __future__ import annotations

from typing import Any

import psycopg

INSTALL = """
CREATE SCHEMA IF NOT EXISTS audit;
CREATE TABLE IF NOT EXISTS audit.change (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id bigint NOT NULL, old text, new text,
  old_lease_no bigint, lease_no bigint, owner uuid, attempt integer, max_attempts integer
);
CREATE OR REPLACE FUNCTION audit.live() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO audit.change (id, old, new, old_lease_no, lease_no, owner) VALUES
      (old.id, old.status, 'gone', old.lease_no, old.lease_no, old.owner);
  ELSE
    INSERT INTO audit.change (id, old, new, old_lease_no, lease_no, owner, attempt, max_attempts) VALUES
      (new.id, CASE WHEN TG_OP = 'UPDATE' THEN old.status END, new.status,
       CASE WHEN TG_OP = 'UPDATE' THEN old.lease_no END, new.lease_no,
       CASE WHEN TG_OP = 'UPDATE' AND new.owner IS NULL THEN old.owner ELSE new.owner END, new.attempt, new.max_attempts);
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION audit.final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit.change (id, old, new, lease_no, owner, attempt, max_attempts) VALUES
    (new.id, 'gone', new.status, new.lease_no, new.owner, new.attempt, new.max_attempts);
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION audit.frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a row of the archive was changed: %', old;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON tasuki.job FOR EACH ROW EXECUTE FUNCTION audit.live();
CREATE TRIGGER audit AFTER INSERT ON tasuki.job_archive FOR EACH ROW EXECUTE FUNCTION audit.final();
CREATE TRIGGER frozen BEFORE UPDATE ON tasuki.job_archive FOR EACH ROW EXECUTE FUNCTION audit.frozen();
"""

RULES = {
    "a transition that no state diagram has": """
        SELECT * FROM audit.change
         WHERE (old, new) NOT IN (('pending', 'running'), ('running', 'pending'),
                                  ('pending', 'pending'), ('running', 'running'), ('pending', 'gone'), ('running', 'gone'),
                                  ('gone', 'completed'), ('gone', 'failed'), ('gone', 'canceled'))""",
    "a pending job ended otherwise than by being canceled": """
        SELECT * FROM audit.change AS a JOIN audit.change AS f USING (id)
         WHERE a.old = 'pending' AND a.new = 'gone' AND f.old = 'gone' AND f.new <> 'canceled'""",
    "a job ended twice": """
        SELECT id FROM audit.change WHERE old = 'gone' GROUP BY id HAVING count(*) <> 1""",
    "a job left one table and did not arrive in the other": """
        SELECT id FROM audit.change WHERE old = 'gone' OR new = 'gone' GROUP BY id HAVING count(*) <> 2""",
    "something happened to a job after its end": """
        SELECT * FROM audit.change AS a JOIN audit.change AS f USING (id)
         WHERE f.old = 'gone' AND a.seq > f.seq AND a.new <> 'gone'""",
    "a lease number fell": """
        SELECT * FROM audit.change WHERE lease_no < old_lease_no""",
    "a lease number was given out twice": """
        SELECT id, lease_no FROM audit.change WHERE old = 'pending' AND new = 'running'
         GROUP BY id, lease_no HAVING count(*) > 1""",
    "a lease was given out without a new number": """
        SELECT * FROM audit.change WHERE old = 'pending' AND new = 'running' AND lease_no <> old_lease_no + 1""",
    "more attempts than allowed": """
        SELECT * FROM audit.change WHERE attempt > max_attempts""",
    "a job is in both tables": """
        SELECT id FROM tasuki.job INTERSECT SELECT id FROM tasuki.job_archive""",
    "a lease ended twice in the history": """
        SELECT job_id, lease_no FROM tasuki.attempt GROUP BY job_id, lease_no HAVING count(*) > 1""",
}


def install(conn: psycopg.Connection[Any]) -> None:
    """Put the triggers into this database."""
    conn.execute(INSTALL)


def check(conn: psycopg.Connection[Any]) -> None:
    """Fail, naming the rule, if anything that was written down breaks one."""
    for rule, query in RULES.items():
        rows = conn.execute(query.encode()).fetchall()
        assert not rows, f"{rule}: {rows}"


def traces(conn: psycopg.Connection[Any], job_id: int, lease_no: int, owner: Any, kind: str) -> int:
    """How often it was written down that this owner ended this lease this way."""
    if kind in {"completed", "failed", "canceled"}:
        query = """SELECT count(*) FROM audit.change
                    WHERE id = %s AND lease_no = %s AND owner = %s AND old = 'gone' AND new = %s"""
    else:
        query = """SELECT count(*) FROM audit.change AS c
                     JOIN tasuki.attempt AS a ON a.job_id = c.id AND a.lease_no = c.lease_no
                    WHERE c.id = %s AND c.old_lease_no = %s AND c.owner = %s AND c.old = 'running' AND c.new = 'pending'
                      AND a.kind = %s"""
    row = conn.execute(query.encode(), (job_id, lease_no, owner, kind)).fetchone()
    return int(row[0]) if row else 0
