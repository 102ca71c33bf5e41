"""The recipes of docs/enqueueing.md for SQLAlchemy, Django and asyncpg: the job exists if and only if theirs commits.

Each is skipped where its framework is not installed; the project does not depend on any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tasuki_mp import AsyncClient, Client, DatabaseError, Tasuki

RECIPES: Final = Path(__file__).parents[2] / "docs" / "enqueueing.md"

app = Tasuki()


@app.handler(queue="receipts")
def send_receipt(order: int, customer: str) -> None:
    pass


class RefusedError(Exception):
    pass


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as it:
        yield it


@pytest.fixture
def orders(conn: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A connection beside the framework's, to a database that has the shop's table."""
    conn.execute("CREATE TABLE shop_order (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text)")
    return conn


def jobs(conn: psycopg.Connection) -> list[tuple[str, str]]:
    """(customer of the order, customer in the job's payload), by id; an order without a job shows up as a missing row."""
    return conn.execute(
        "SELECT o.customer, j.payload ->> 'customer' FROM shop_order AS o"
        " FULL JOIN tasuki.job AS j ON (j.payload ->> 'order')::bigint = o.id AND j.queue = 'receipts' ORDER BY j.id"
    ).fetchall()


def jobs_as_owner(conn: psycopg.Connection) -> list[tuple[str, str]]:
    """The same for a connection that has taken another role."""
    conn.execute("RESET ROLE")
    return jobs(conn)


def url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


# ── SQLAlchemy ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sqlalchemy_session_takes_the_job_along(dsn: str, orders: psycopg.Connection, client: Client) -> None:
    alchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "shop_order"
        id = mapped_column(alchemy.BigInteger, alchemy.Identity(), primary_key=True)
        customer = mapped_column(alchemy.Text)

    assert Mapped
    engine = alchemy.create_engine(url(dsn, "psycopg"))

    def place(session: Session, customer: str) -> None:
        order = Order(customer=customer)
        session.add(order)
        session.flush()
        conn = session.connection().connection.driver_connection
        client.enqueue(send_receipt.job(order.id, customer), conn=conn)

    with Session(engine) as session, session.begin():
        place(session, "Ann")
        assert jobs(orders) == []
        with contextlib.suppress(RefusedError), session.begin_nested():
            place(session, "Bob")
            raise RefusedError
    with contextlib.suppress(RefusedError), Session(engine) as session, session.begin():
        place(session, "Cleo")
        raise RefusedError
    assert jobs(orders) == [("Ann", "Ann")]
    engine.dispose()


def test_sqlalchemy_with_asyncio(dsn: str, orders: psycopg.Connection) -> None:
    alchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> None:
        engine = create_async_engine(url(dsn, "psycopg"))
        async with AsyncClient(dsn) as client:
            for customer, is_solvent in (("Ann", True), ("Bob", False)):
                with contextlib.suppress(RefusedError):
                    async with AsyncSession(engine) as session, session.begin():
                        insert = alchemy.text("INSERT INTO shop_order (customer) VALUES (:customer) RETURNING id")
                        order = await session.scalar(insert, {"customer": customer})
                        conn = (await session.connection()).sync_connection.connection.driver_connection
                        await client.enqueue(send_receipt.job(order, customer), conn=conn)
                        if not is_solvent:
                            raise RefusedError
        await engine.dispose()

    asyncio.run(main())
    assert jobs(orders) == [("Ann", "Ann")]


def test_sqlalchemy_calls_the_function(dsn: str, orders: psycopg.Connection) -> None:
    alchemy = pytest.importorskip("sqlalchemy")
    orders.execute(
        "INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('send_receipt', 'receipts', 2, 5)"
    )
    engine = alchemy.create_engine(url(dsn, "psycopg"))
    call = alchemy.text("SELECT tasuki.enqueue(:handler, cast(:payload AS jsonb))")
    with engine.begin() as conn:
        conn.execute(alchemy.text("INSERT INTO shop_order (customer) VALUES ('Ann')"))
        conn.execute(call, {"handler": "send_receipt", "payload": '{"order": 1, "customer": "Ann"}'})
        conn.rollback()
    with engine.begin() as conn:
        order = conn.scalar(alchemy.text("INSERT INTO shop_order (customer) VALUES ('Bob') RETURNING id"))
        conn.execute(call, {"handler": "send_receipt", "payload": f'{{"order": {order}, "customer": "Bob"}}'})
    assert jobs(orders) == [("Bob", "Bob")]
    engine.dispose()


# ── Django ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_django_transaction_takes_the_job_along(dsn: str, orders: psycopg.Connection, client: Client) -> None:
    django = pytest.importorskip("django")
    from django.conf import settings
    from django.db import connections, transaction
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": parts.get("port", ""),
    }
    if not settings.configured:
        settings.configure(DATABASES={"default": database})
        django.setup()
    connection = connections["default"]

    def place(customer: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO shop_order (customer) VALUES (%s) RETURNING id", [customer])
            [order] = cursor.fetchone()
        client.enqueue(send_receipt.job(order, customer), conn=connection.connection)

    with transaction.atomic():
        place("Ann")
        assert jobs(orders) == []
        with contextlib.suppress(RefusedError), transaction.atomic():
            place("Bob")
            raise RefusedError
    with contextlib.suppress(RefusedError), transaction.atomic():
        place("Cleo")
        raise RefusedError
    assert jobs(orders) == [("Ann", "Ann")]
    connection.close()


# ── asyncpg ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_asyncpg_transaction_takes_the_job_along(dsn: str, orders: psycopg.Connection) -> None:
    asyncpg = pytest.importorskip("asyncpg")

    async def main() -> None:
        conn = await asyncpg.connect(dsn)
        for customer, is_solvent in (("Ann", True), ("Bob", False)):
            with contextlib.suppress(RefusedError):
                async with conn.transaction():
                    order = await conn.fetchval("INSERT INTO shop_order (customer) VALUES ($1) RETURNING id", customer)
                    job = send_receipt.job(order, customer)
                    await conn.fetchval(
                        "SELECT tasuki.enqueue($1, $2, queue => $3)", job.row.handler, job.row.payload, job.row.queue
                    )
                    if not is_solvent:
                        raise RefusedError
        await conn.close()

    asyncio.run(main())
    assert jobs(orders) == [("Ann", "Ann")]


# ── triggers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trigger_makes_a_job_part_of_every_insert(orders: psycopg.Connection) -> None:
    orders.execute(
        "INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('send_receipt', 'receipts', 2, 5)"
    )
    orders.execute("""
        CREATE FUNCTION receipt_for_order() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM tasuki.enqueue('send_receipt', jsonb_build_object('order', NEW.id, 'customer', NEW.customer));
            RETURN NULL;
        END $$
    """)
    orders.execute(
        "CREATE TRIGGER receipt AFTER INSERT ON shop_order FOR EACH ROW EXECUTE FUNCTION receipt_for_order()"
    )
    orders.execute("INSERT INTO shop_order (customer) VALUES ('Ann'), ('Bob')")
    with contextlib.suppress(RefusedError), orders.transaction():
        orders.execute("INSERT INTO shop_order (customer) VALUES ('Cleo')")
        raise RefusedError
    assert jobs(orders) == [("Ann", "Ann"), ("Bob", "Bob")]


# ── rights ────────────────────────────────────────────────────────────────────────────────────────────────────────────

GRANTS: Final = re.findall(r"^```sql\n(GRANT .*?)```", RECIPES.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
"""The statements that the page gives for a role that enqueues, and for one that cancels as well."""


@pytest.fixture
def shop(orders: psycopg.Connection) -> Iterator[str]:
    """A role that may do nothing; `orders` sets it as it likes."""
    role = f"shop_{orders.info.dbname}"
    orders.execute(f"CREATE ROLE {role}")
    try:
        yield role
    finally:
        orders.execute("RESET ROLE")
        orders.execute(f"DROP OWNED BY {role}")
        orders.execute(f"DROP ROLE {role}")


def take_role(conn: psycopg.Connection, role: str, *blocks: str) -> None:
    """Give the role these rights, word for word but for its name, and go on as that role."""
    for block in blocks:
        conn.execute(block.replace(" TO shop;", f" TO {role};").encode())
    conn.execute(f"SET ROLE {role}")


def test_rights_that_a_producer_needs_are_enough(orders: psycopg.Connection, client: Client, shop: str) -> None:
    take_role(orders, shop, GRANTS[0])
    orders.execute(
        "SELECT tasuki.enqueue('send_receipt', '{\"order\": 1, \"customer\": \"Ann\"}', queue => 'receipts')"
    )
    client.enqueue(send_receipt.job(2, "Bob"), conn=orders)
    client.enqueue_many([send_receipt.job(3, "Cleo")], conn=orders)
    first = client.enqueue(send_receipt.job(4, "Dora").unique("d"), conn=orders)
    assert client.enqueue(send_receipt.job(4, "Dora").unique("d"), conn=orders).id == first.id
    emil = send_receipt.job(5, "Emil").unique("e", scope=timedelta(hours=1))
    assert len(set(client.enqueue_many([emil, emil], conn=orders))) == 1
    for _ in range(2):
        orders.execute(
            """SELECT tasuki.enqueue('send_receipt', '{"order": 6, "customer": "Fay"}', queue => 'receipts',
                                     unique_key => 'f')"""
        )
    assert [customer for _, customer in jobs_as_owner(orders)] == ["Ann", "Bob", "Cleo", "Dora", "Emil", "Fay"]


def test_who_only_enqueues_can_neither_replace_nor_cancel(
    orders: psycopg.Connection, client: Client, shop: str
) -> None:
    take_role(orders, shop, GRANTS[0])
    job = send_receipt.job(1, "Ann").unique("a", on_conflict="replace")
    first = client.enqueue(job, conn=orders)
    with pytest.raises(DatabaseError, match="may not do this"):
        client.enqueue(job, conn=orders)
    with pytest.raises(DatabaseError, match="may not do this"):
        client.cancel([first.id], conn=orders)
    assert [customer for _, customer in jobs_as_owner(orders)] == ["Ann"]


def test_rights_of_who_cancels_as_well_are_enough(orders: psycopg.Connection, client: Client, shop: str) -> None:
    take_role(orders, shop, *GRANTS)
    job = send_receipt.job(1, "Ann").unique("a", on_conflict="replace")
    first = client.enqueue(job, conn=orders)
    second = client.enqueue(send_receipt.job(2, "Bob"), conn=orders)
    assert client.enqueue(job, conn=orders).id == first.id
    assert client.cancel([first.id, second.id], conn=orders) == {first.id: "canceled", second.id: "canceled"}
    assert orders.execute("SELECT tasuki.cancel(%s)", (first.id,)).fetchone() == ("finished",)
    assert client.enqueue(job, conn=orders).is_new, "its key is free"
    assert [customer for _, customer in jobs_as_owner(orders)] == ["Ann"]
