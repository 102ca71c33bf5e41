"""Which connections are worth a warning."""

from __future__ import annotations

import pytest

from tasuki_mp.store.tls import Unverified, unverified


@pytest.fixture(autouse=True)
def without_libpqs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSSLROOTCERT", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "dbname=shop",
        "postgresql:///shop",
        "postgresql:///shop?host=/var/run/postgresql",
        "postgresql:///shop?host=@abstract",
        "postgresql://ann@localhost/shop",
        "postgresql://ann@LocalHost./shop",
        "postgresql://ann@127.0.0.1:5433/shop",
        "postgresql://ann@127.8.8.8/shop",
        "postgresql://ann@[::1]/shop",
        "postgresql://localhost,127.0.0.1/shop",
        "host=db.example.com hostaddr=127.0.0.1",
        "postgresql://db.example.com/shop?sslmode=verify-full",
        "host=db.example.com sslrootcert=system",
    ],
)
def test_nobody_is_between(dsn: str) -> None:
    assert unverified(dsn) is None


@pytest.mark.parametrize(
    ("dsn", "host", "sslmode"),
    [
        ("postgresql://db.example.com/shop", "db.example.com", "prefer"),
        ("postgresql://db/shop?sslmode=disable", "db", "disable"),
        ("postgresql://10.0.0.7/shop?sslmode=require", "10.0.0.7", "require"),
        ("postgresql://[fd00::7]/shop?sslmode=verify-ca", "fd00::7", "verify-ca"),
        ("host=localhost,db2 port=5432", "db2", "prefer"),
        ("host=localhost hostaddr=10.0.0.7", "10.0.0.7", "prefer"),
    ],
)
def test_somebody_may_be_between(dsn: str, host: str, sslmode: str) -> None:
    assert unverified(dsn) == Unverified(host, sslmode)


def test_what_the_dsn_leaves_open_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    assert unverified("dbname=shop") == Unverified("db.example.com", "prefer")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert unverified("dbname=shop") is None
