"""tasuki.enqueue() and what any language may rely on: defaults, errors, triggers, and no way around pg_catalog."""

from __future__ import annotations

import datetime as dt
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from tests.support.jobs import live
from tests.support.listening import heard, listening

Conn = psycopg.Connection[Any]


@pytest.fixture
def known(conn: Conn) -> Conn:
    """A connection to a database that a supervisor has told of one handler."""
    conn.execute(
        "INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('thumbnail', 'images', 1, 7)"
    )
    return conn


def enqueue(conn: Conn, arguments: str, *values: Any) -> dict[str, Any]:
    row = conn.execute(f"SELECT tasuki.enqueue({arguments})", values).fetchone()  # type: ignore[arg-type]  # tests' own texts
    assert row is not None
    found = live(conn, row[0])
    assert found is not None
    return found


def test_the_handler_s_own_defaults(known: Conn) -> None:
    row = enqueue(known, """'thumbnail', '{"path": "a.png"}'""")
    assert (row["queue"], row["priority"], row["max_attempts"]) == ("images", 1, 7)
    assert (row["handler"], row["payload"], row["status"]) == ("thumbnail", {"path": "a.png"}, "pending")
    assert abs(row["scheduled_at"] - row["created_at"]) < dt.timedelta(seconds=5)
    assert enqueue(known, "'thumbnail'")["payload"] == {}


def test_what_is_given_goes_before_them(known: Conn) -> None:
    when = dt.datetime(2031, 1, 2, tzinfo=dt.UTC)
    arguments = "'thumbnail', queue => 'q', priority => 0, max_attempts => 1, scheduled_at => %s"
    row = enqueue(known, arguments, when)
    assert (row["queue"], row["priority"], row["max_attempts"], row["scheduled_at"]) == ("q", 0, 1, when)


def test_an_unknown_handler_is_an_error_unless_the_queue_is_given(conn: Conn) -> None:
    with pytest.raises(pg.UndefinedObject, match='no handler named "nope" is known') as caught:
        enqueue(conn, "'nope'")
    assert "give the queue" in str(caught.value.diag.message_hint)
    row = enqueue(conn, "'nope', queue => 'q'")
    assert (row["queue"], row["priority"], row["max_attempts"]) == ("q", 2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ("null", pg.NullValueNotAllowed, "name of its handler"),
        ("'thumbnail', null", pg.InvalidParameterValue, "must be a JSON object, not null"),
        ("'thumbnail', '[]'", pg.InvalidParameterValue, "must be a JSON object, not array"),
        ("'thumbnail', '1'", pg.InvalidParameterValue, "must be a JSON object, not number"),
        ("'thumbnail', '{'", pg.InvalidTextRepresentation, "json"),
        (r"""'thumbnail', '{"a": "\u0000"}'""", pg.UntranslatableCharacter, "Unicode"),
        ("'thumbnail', jsonb_build_object('x', repeat('x', 1048576))", pg.ProgramLimitExceeded, "limit is 1048576"),
        ("'thumbnail', queue => 'a b'", pg.InvalidParameterValue, 'a queue can\'t be named "a b"'),
        ("'thumbnail', queue => ''", pg.InvalidParameterValue, 'a queue can\'t be named ""'),
        ("'thumbnail', priority => 4", pg.InvalidParameterValue, "0 .first. to 3 .last., not 4"),
        ("'thumbnail', max_attempts => 0", pg.InvalidParameterValue, "1 or more, not 0"),
        ("'thumbnail', scheduled_at => 'infinity'", pg.InvalidParameterValue, 'scheduled at "infinity"'),
        ("'thumbnail', scheduled_at => '2201-01-01'", pg.InvalidParameterValue, "scheduled at"),
        ("repeat('x', 201), queue => 'q'", pg.InvalidParameterValue, "1 to 200 characters, not 201"),
        ("'', queue => 'q'", pg.InvalidParameterValue, "1 to 200 characters, not 0"),
        ("'x''; drop table tasuki.job; --'", pg.UndefinedObject, "drop table"),
    ],
)
def test_what_is_refused(known: Conn, arguments: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        enqueue(known, arguments)
    assert known.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)


def test_the_largest_payload_passes(known: Conn) -> None:
    size = 1048576 - len('{"x": ""}')
    row = enqueue(known, "'thumbnail', jsonb_build_object('x', repeat('x', %s))", size)
    assert len(row["payload"]["x"]) == size


@pytest.mark.usefixtures("own_database")
def test_a_trigger_enqueues_in_its_transaction(known: Conn, dsn: str) -> None:
    known.execute(
        """CREATE TABLE picture (path text);
           CREATE FUNCTION on_picture() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN
             PERFORM tasuki.enqueue('thumbnail', jsonb_build_object('path', new.path));
             RETURN null;
           END $$;
           CREATE TRIGGER on_picture AFTER INSERT ON picture FOR EACH ROW EXECUTE FUNCTION on_picture()"""
    )
    paths = "SELECT payload ->> 'path' FROM tasuki.job ORDER BY id"
    with listening(dsn, "tasuki_job") as listener:
        with psycopg.connect(dsn) as own:
            own.execute("INSERT INTO picture SELECT 'lost ' || n FROM generate_series(1, 3) AS n")
            own.rollback()
            own.execute("INSERT INTO picture SELECT 'kept ' || n FROM generate_series(1, 30) AS n")
            assert known.execute(paths).fetchall() == []
        assert known.execute(paths).fetchall() == [(f"kept {n}",) for n in range(1, 31)]
        assert heard(listener, "tasuki_job") == ["images 0"]


def test_jobs_for_later_tell_nobody_yet(known: Conn, dsn: str) -> None:
    with listening(dsn, "tasuki_job") as listener:
        enqueue(known, "'thumbnail', scheduled_at => now() + interval '1 hour'")
        enqueue(known, "'thumbnail', queue => 'past', scheduled_at => now() - interval '1 hour'")
        assert heard(listener, "tasuki_job") == ["past 0"]


@pytest.mark.usefixtures("own_database")
def test_a_hostile_search_path_changes_nothing(known: Conn) -> None:
    known.execute(
        """CREATE SCHEMA evil;
           CREATE TABLE evil.job (id bigint);
           CREATE FUNCTION evil.jsonb_typeof(jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 1 / 0, 'object' $$
        """.replace("SELECT 1 / 0, 'object'", "SELECT (1 / 0)::text")
    )
    for name, returned in (("pg_notify(text, text)", "void"), ("clock_timestamp()", "timestamptz")):
        known.execute(  # type: ignore[call-overload]  # tests' own texts
            f"CREATE FUNCTION evil.{name} RETURNS {returned} LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$"
        )
    known.execute("SET search_path = evil, pg_catalog")
    row = known.execute("SELECT tasuki.enqueue('thumbnail', '{}')").fetchone()
    assert row is not None
    assert known.execute("SELECT tasuki.cancel(%s)", row).fetchone() == ("canceled",)


def test_both_run_with_the_caller_s_rights(known: Conn) -> None:
    found = known.execute(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE proname IN ('enqueue', 'cancel') ORDER BY proname"
    ).fetchall()
    path = ["search_path=pg_catalog, pg_temp"]
    assert found == [("cancel", False, path), ("enqueue", False, path)]


def test_payloads_from_other_drivers_arrive_as_they_are(known: Conn) -> None:
    payload = {"path": "ü\U0001f600", "n": 10**30, "deep": [[[{}]]]}
    assert enqueue(known, "'thumbnail', %s", Jsonb(payload))["payload"] == payload
