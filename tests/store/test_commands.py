"""What is asked of the supervisor that runs a job, and what becomes of the question."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from tasuki_mp import AsyncClient, Client, store
from tasuki_mp.errors import CommandError, NoAnswerError
from tasuki_mp.store import commands
from tasuki_mp.store.commands import Reply
from tasuki_mp.store.steps import drive_async
from tasuki_mp.supervisor.commands import Commands
from tasuki_mp.supervisor.link import Link
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.waiting import wait_for_row

Conn = psycopg.Connection[Any]
LEFT = "SELECT count(*) FROM tasuki.command"


@pytest.fixture
def conn(dsn: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_who_gets_no_answer_learns_whose_it_would_have_been(dsn: str, conn: Conn) -> None:
    with Holder(dsn) as holder, Client(dsn) as client:
        holder.register(host="far away")
        jobs.add(conn)
        lease = holder.lease_one()

        with pytest.raises(NoAnswerError, match="on far away has not answered"):
            client.stack(lease.id, timeout=0.1)
    assert conn.execute(LEFT).fetchone() == (0,)


def test_an_answer_is_found_whenever_it_comes(dsn: str, conn: Conn) -> None:
    value = {"text": "at work", "host": "h", "pid": 1, "slot": 0, "ran_for": 1.5}
    with Holder(dsn) as holder:
        jobs.add(conn)
        lease = holder.lease_one()

        def reply() -> None:
            wait_for_row(conn, "SELECT 1 FROM tasuki.command")
            (command,) = holder.call(commands.open_commands, owner=holder.owner)
            assert (command.kind, command.job_id, command.lease_no) == ("stack", *lease.key)
            holder.call(commands.answer, replies=[(command.id, Reply(value=value))])

        answering = threading.Thread(target=reply)
        answering.start()

        async def ask() -> str:
            async with AsyncClient(dsn) as client:
                return str(await client.stack(lease.id, timeout=45))

        assert asyncio.run(ask()) == "at work"
        answering.join()
    assert conn.execute(LEFT).fetchone() == (0,)


def test_what_nobody_waits_for_any_more_is_dropped(dsn: str, conn: Conn) -> None:
    with Holder(dsn) as holder:
        jobs.add(conn)
        lease = holder.lease_one()
        conn.execute(
            """INSERT INTO tasuki.command (owner, kind, job_id, lease_no, expires_at)
               SELECT %s, 'stack', %s, %s, now() + n * interval '1 minute' FROM unnest(array[-1, 1]) AS n""",
            (holder.owner, *lease.key),
        )
        assert len(holder.call(commands.open_commands, owner=holder.owner)) == 1
        assert holder.call(commands.forget) == 1
        assert conn.execute(LEFT).fetchone() == (1,)


def test_a_question_of_a_newer_release_is_answered_too(dsn: str, conn: Conn) -> None:
    with Holder(dsn) as holder:
        jobs.add(conn)
        lease = holder.lease_one()

        async def ask() -> None:
            link = Link(dsn, name="commands", timeout=45)
            answering = Commands(link, owner=holder.owner, kinds={})
            answering.start()
            async with await store.connect_async(dsn, name="asking") as asking:
                task = asyncio.create_task(_ask(asking, lease.id))
                while not task.done():
                    answering.hint()
                    await asyncio.wait([task], timeout=0.05)
            await answering.stop()
            await link.close()
            await task

        with pytest.raises(CommandError, match="knows no 'riddle'"):
            asyncio.run(ask())


async def _ask(conn: psycopg.AsyncConnection[Any], job_id: int) -> object:
    return await drive_async(conn, commands.ask("riddle", job_id, timeout=45), commits=True)
