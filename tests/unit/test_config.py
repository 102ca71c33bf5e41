"""Where options and the dsn come from, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasuki_mp import Client
from tasuki_mp.config import RunConfig, describe_dsn, find_dsn, run_config
from tasuki_mp.errors import ConfigError

APP = {"app": "shop.jobs:app"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "config" / "tasuki-mp"
    folder.mkdir(parents=True)
    return folder


def environ(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), **variables}


def config(
    tmp_path: Path, given: dict[str, object] | None = None, file: str | None = None, **variables: str
) -> RunConfig:
    path = None
    if file is not None:
        path = tmp_path / "given.toml"
        path.write_text(file)
    return run_config(
        {**APP, **(given or {})},
        dsn="",
        config_file=path,
        environ=environ(tmp_path, **variables),
        directory=tmp_path,
    )


def project(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'shop'\n[tool.tasuki-mp]\n{text}")


def test_the_stronger_source_wins(tmp_path: Path, home: Path) -> None:
    (home / "config.toml").write_text("procs = 1")
    assert config(tmp_path).procs == 1
    project(tmp_path, "procs = 2")
    assert config(tmp_path).procs == 2
    assert config(tmp_path, file="procs = 3").procs == 3
    assert config(tmp_path, file="procs = 3", TASUKI_PROCS="4").procs == 4
    assert config(tmp_path, {"procs": "5"}, file="procs = 3", TASUKI_PROCS="4").procs == 5


def test_a_source_speaks_only_of_what_it_names(tmp_path: Path, home: Path) -> None:
    (home / "config.toml").write_text('lease = "2m"')
    project(tmp_path, 'queue = ["a", "b=3"]\nmigrate = false')
    made = config(tmp_path, {"procs": "7", "poll": None}, TASUKI_POLL="250ms", TASUKI_GRACE="")
    assert (made.procs, made.lease, made.poll, made.grace) == (7, 120.0, 0.25, 30.0)
    assert made.queues == (("a", 1), ("b", 3))
    assert not made.migrate
    assert made.notify


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("all", "all"),
        ("due", "due"),
        (True, "all"),
        (False, None),
    ],
)
def test_drain_is_a_word_or_a_switch(tmp_path: Path, given: object, expected: str | None) -> None:
    assert config(tmp_path, {"drain": given}).drain == expected


@pytest.mark.parametrize(
    ("given", "file", "variables", "message"),
    [
        ({"procs": "0"}, None, {}, "--procs: '0' must be a whole number from 1 to 4096"),
        ({}, None, {"TASUKI_LEASE": "soon"}, "TASUKI_LEASE: 'soon' is no duration; write 90s, 1m30s, 250ms, 2h or 1d"),
        ({}, None, {"TASUKI_QUEUE": "a b"}, "TASUKI_QUEUE: 'a b' is no queue name"),
        ({}, 'log-level = "loud"', {}, "given.toml: log-level: 'loud' must be one of debug, info, warning, error"),
        ({}, "procs = true", {}, "given.toml: procs: True must be a whole number"),
        ({}, 'proc = "2"', {}, "given.toml: unknown option 'proc'"),
        ({}, "app =", {}, "given.toml is no TOML"),
        ({"http": "nowhere"}, None, {}, "--http: 'nowhere' is no address; write HOST:PORT"),
        ({"lease": "0.1"}, None, {}, "--lease: '0.1' must lie between 0.5 and 86400 seconds"),
    ],
)
def test_a_wrong_value_is_reported_with_its_place(
    tmp_path: Path, given: dict[str, object], file: str | None, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, given, file, **variables)
    assert message in str(caught.value)


def test_a_wrong_value_does_no_harm_where_a_stronger_source_speaks(tmp_path: Path) -> None:
    assert config(tmp_path, {"procs": "2"}, TASUKI_PROCS="many").procs == 2


def test_a_missing_application_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--app package\.module:app"):
        run_config({}, dsn="", environ=environ(tmp_path), directory=tmp_path)


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        run_config(APP, dsn="", config_file=tmp_path / "nothing.toml", environ=environ(tmp_path), directory=tmp_path)


def test_no_repr_holds_the_dsn() -> None:
    assert "hunter2" not in repr(RunConfig(app="a:b", dsn="postgresql://ann:hunter2@db/shop", procs=1))


# ── which database ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stronger_dsn_wins(tmp_path: Path, home: Path) -> None:
    given = tmp_path / "given.toml"
    given.write_text('dsn = "dbname=file"')
    (home / "config.toml").write_text('dsn = "dbname=home"')

    def find(explicit: str | None = None, file: Path | None = None, **variables: str) -> str:
        return find_dsn(explicit, file, environ=environ(tmp_path, **variables), directory=tmp_path)

    assert find() == "dbname=home"
    assert find(DATABASE_URL="dbname=url") == "dbname=url"
    assert find(DATABASE_URL="dbname=url", TASUKI_DSN="dbname=own") == "dbname=own"
    assert find(file=given, TASUKI_DSN="dbname=own") == "dbname=file"
    assert find("dbname=told", given, TASUKI_DSN="dbname=own") == "dbname=told"
    assert find("embedded") == "embedded"


def test_no_dsn_says_what_to_set_and_never_means_the_embedded_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Set TASUKI_DSN"):
        find_dsn(environ=environ(tmp_path), directory=tmp_path)


def test_pyproject_holds_no_dsn(tmp_path: Path) -> None:
    project(tmp_path, 'dsn = "dbname=shop"')
    with pytest.raises(ConfigError, match=r"pyproject\.toml: a dsn does not belong"):
        find_dsn(environ=environ(tmp_path), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"pyproject\.toml: a dsn does not belong"):
        config(tmp_path)


def test_a_file_of_another_shape_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("tool = 3")
    with pytest.raises(ConfigError, match=r"pyproject\.toml: tool must be a table"):
        config(tmp_path)
    given = tmp_path / "given.toml"
    given.write_text("dsn = 5")
    with pytest.raises(ConfigError, match=r"given\.toml: dsn must be a text; write postgresql://"):
        find_dsn(None, given, environ=environ(tmp_path), directory=tmp_path)


def test_a_wrong_dsn_in_the_source_is_not_blamed_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"^dsn can't be read"), Client("nonsense") as client:
        client.status(1)


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql+psycopg://ann:hunter2@db/shop", "SQLAlchemy's spelling; write postgresql://ann:…@db/shop"),
        ("postgres+asyncpg://db/shop", "SQLAlchemy's spelling; write postgresql://db/shop"),
        ("mysql://ann:hunter2@db/shop", "mysql:// is no PostgreSQL"),
        ("postgresql://ann:hunter2@x@db/shop", "more than one @"),
        ("host=db password=secret hunter2", "can't be read"),
        ("hunter2", "can't be read"),
        ("", "is empty"),
        ("  ", "is empty"),
    ],
)
def test_a_wrong_dsn_is_refused_without_telling_its_password(dsn: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_dsn(dsn)
    assert str(caught.value).startswith("--dsn")
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("dsn", "description"),
    [
        ("postgresql://ann:hunter2@db.example.com:5433/shop?sslmode=require", "shop on db.example.com:5433 as ann"),
        ("host=/run/postgresql dbname=shop user=ann password=hunter2", "shop on /run/postgresql as ann"),
        ("postgresql://ann@one,two:7/shop", "shop on one:5432, two:7 as ann"),
        ("embedded", "the embedded PostgreSQL"),
    ],
)
def test_a_description_has_no_password(dsn: str, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert describe_dsn(dsn) == description


def test_a_description_knows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "db", "PGPORT": "7", "PGUSER": "ann", "PGPASSWORD": "hunter2"}.items():
        monkeypatch.setenv(name, value)
    assert describe_dsn("dbname=shop") == "shop on db:7 as ann"
