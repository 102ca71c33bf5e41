"""A job that exists if and only if the order it belongs to does: both are written in one transaction.

    python examples/web_transaction.py --dsn embedded

takes two orders as a web application would, on its own psycopg connection. One of them is refused after its job was
enqueued, and then the script looks into the queue. The jobs that are there are run by

    tasuki-mp run --dsn embedded --app-dir examples --app web_transaction:app --drain

`--dsn embedded` is a PostgreSQL of tasuki-mp's own; leave it out when TASUKI_DSN names yours. The orders stand in a
table `example_order`.
"""

import argparse
import os
import sys
from contextlib import ExitStack

import psycopg

from tasuki_mp import Tasuki, TasukiError, embedded, migrate

app = Tasuki()


@app.handler(queue="receipts")
def send_receipt(order: int, customer: str) -> str:
    """Runs once the order is committed, and never for an order that isn't."""
    print(f"dear {customer}, thank you for order {order}", flush=True)
    return f"receipt for order {order} sent"


class RefusedError(Exception):
    """The payment for an order did not go through."""

    def __init__(self, order: int) -> None:
        super().__init__(f"the payment for order {order} is refused")
        self.order = order


def place_order(conn: psycopg.Connection, customer: str, *, is_solvent: bool) -> int:
    """What a request handler of the web application does. When it raises, neither order nor job has ever existed."""
    with conn.transaction():
        order = number(conn, "INSERT INTO example_order (customer) VALUES (%s) RETURNING id", customer)
        job = app.enqueue(send_receipt.job(order, customer), conn=conn)
        print(f"order {order} of {customer} is inserted, job {job.id} enqueued, nothing committed yet")
        if not is_solvent:
            raise RefusedError(order)
    return order


def number(conn: psycopg.Connection, query: str, parameter: object) -> int:
    """The one number that a query gives."""
    [value] = conn.execute(query, (parameter,)).fetchone() or [0]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default=os.environ.get("TASUKI_DSN"), help="which database; else TASUKI_DSN says")
    dsn = parser.parse_args().dsn or parser.error("which database? Set TASUKI_DSN, or give --dsn embedded")

    with ExitStack() as stack:
        if dsn == "embedded":
            dsn = stack.enter_context(embedded.open_embedded()).dsn
        migrate.migrate(dsn)  # in real life: `tasuki-mp migrate`, when the application is deployed
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        conn.execute("CREATE TABLE IF NOT EXISTS example_order (id bigint GENERATED ALWAYS AS IDENTITY, customer text)")
        for customer, is_solvent in (("Ann", True), ("Bob", False)):
            try:
                order = place_order(conn, customer, is_solvent=is_solvent)
                print(f"order {order}: committed")
            except RefusedError as error:
                order = error.order
                print(f"order {order}: rolled back, {error}")
            orders = number(conn, "SELECT count(*) FROM example_order WHERE id = %s", order)
            jobs = number(conn, "SELECT count(*) FROM tasuki.job WHERE (payload ->> 'order')::bigint = %s", order)
            print(f"order {order}: {orders} in the table, {jobs} in the queue")


if __name__ == "__main__":
    try:
        main()
    except TasukiError as error:
        sys.exit(str(error))
