"""What the program is told: one frozen `RunConfig`, and where its values come from.

An option's value comes from the command line, else the environment (`TASUKI_PROCS`), else the file given by
`--config`, else `[tool.tasuki-mp]` in the working directory's pyproject.toml, else `~/.config/tasuki-mp/config.toml`.
Which database it is follows a rule of its own, `find_dsn`, because enqueueing into the wrong one goes unnoticed.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tasuki_mp.cores import usable_cores
from tasuki_mp.errors import ConfigError
from tasuki_mp.limits import MAX_MEMORY
from tasuki_mp.memory import default_limit
from tasuki_mp.options import PARSERS

_FIELDS: Final = {"queue": "queues"}
EMBEDDED: Final = "embedded"
"""In place of a DSN: the PostgreSQL that `tasuki_mp.embedded` installs and runs."""


class ExitCode(IntEnum):
    """What the program's exit status means."""

    OK = 0
    FAILED = 1
    """Something unexpected; the traceback is a bug report."""
    USAGE = 2
    """The command line, the environment or a configuration file is wrong."""
    DRAIN_LEFT = 3
    """`run --drain` left jobs that it may not run."""
    DATABASE = 4
    """The database can't be reached, refuses, or has a schema this program can't use."""
    APP = 5
    """The application can't be imported, or its children can't start."""
    FORCED = 6
    """Stopped by force: not every outcome was written. Those jobs run again."""
    NOT_COMPLETED = 7
    """Jobs that were waited for failed, were canceled, or are gone."""
    TIMEOUT = 8
    """Jobs that were waited for are not final yet."""
    LOCKED = 9
    """Another run holds the lock."""
    WARNINGS = 10
    """`doctor` found what will become a problem."""
    PROBLEMS = 11
    """`doctor` found what keeps jobs from running, or may lose some."""


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs are kept, in seconds; None: for ever."""

    completed: float | None = 7 * 86_400.0
    failed: float | None = 30 * 86_400.0
    """Canceled ones too."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `tasuki-mp run` was told. Durations are seconds."""

    app: str
    dsn: str
    app_dir: str | None = None
    procs: int
    memory_limit: int = MAX_MEMORY
    """Bytes that this supervisor, its children and their jobs should not exceed together."""
    max_jobs_per_child: int | None = None
    max_child_age: float | None = None
    queues: tuple[tuple[str, int], ...] = ()
    """(name, weight); empty means all queues of the application's handlers."""
    lease: float = 60.0
    grace: float = 30.0
    poll: float = 1.0
    drain: Literal["all", "due"] | None = None
    http: tuple[str, int] | None = None
    keep: Keep = Keep()
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    notify: bool = True
    migrate: bool = True
    preload: tuple[str, ...] | None = ()
    """Modules that are imported once for all children, before the application; None: not even that is."""
    slot_env: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(variable, its value in each slot)."""
    reload: bool = False

    def __repr__(self) -> str:  # the dsn may hold a password, and reprs end up in logs
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "dsn")
        return f"RunConfig({shown})"


# ── where they come from ──────────────────────────────────────────────────────────────────────────────────────────────


def run_config(
    given: Mapping[str, object],
    *,
    dsn: str,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> RunConfig:
    """The RunConfig out of `given` (option name → raw value; None: not given) and of all that may stand behind it."""
    values = _values(PARSERS.keys(), given, config_file, environ, directory)
    if "app" not in values:
        raise ConfigError(
            "which application? Give --app package.module:app, "
            "or set TASUKI_APP, or put app into [tool.tasuki-mp] of pyproject.toml"
        )
    values.setdefault("procs", usable_cores())
    for name, each in values.get("slot_env", ()):
        if len(each) < values["procs"]:
            raise ConfigError(
                f"slot-env: {name} has {len(each)} value{'s' if len(each) > 1 else ''} for {values['procs']} slots; "
                "give one for each slot, or fewer --procs"
            )
    values.setdefault("memory_limit", default_limit())
    return RunConfig(dsn=dsn, keep=_keep(values), **values)


def keep_config(
    given: Mapping[str, object],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> Keep:
    """What `run` would be told about retention from the same places."""
    return _keep(_values(("keep-completed", "keep-failed"), given, config_file, environ, directory))


def _keep(values: dict[str, Any]) -> Keep:
    """Takes what is said about retention out of the values."""
    said = {name: values.pop(f"keep_{name}") for name in ("completed", "failed") if f"keep_{name}" in values}
    return Keep(**said)


def _values(
    names: Collection[str],
    given: Mapping[str, object],
    config_file: Path | None,
    environ: Mapping[str, str],
    directory: Path | None,
) -> dict[str, Any]:
    """The parsed values of the options with these names, as far as any place says something."""
    sources: list[tuple[Callable[[str], str], Mapping[str, object]]] = [
        ("--{}".format, {name: value for name, value in given.items() if value is not None}),
        (_variable, {name: environ[_variable(name)] for name in PARSERS if environ.get(_variable(name), "").strip()}),
    ]
    sources += [(f"{path}: {{}}".format, options) for path, options in _files(config_file, environ, directory)]
    values: dict[str, Any] = {}
    for name in names:
        for label, options in sources:
            if name not in options:
                continue
            try:
                values[_FIELDS.get(name) or name.replace("-", "_")] = PARSERS[name](options[name])
            except ValueError as error:
                raise ConfigError(f"{label(name)}: {error}") from None
            break
    return values


def _variable(option: str) -> str:
    return "TASUKI_" + option.replace("-", "_").upper()


def _files(
    config_file: Path | None, environ: Mapping[str, str], directory: Path | None
) -> list[tuple[Path, dict[str, object]]]:
    """Each configuration file that exists with its options, the strongest first."""
    found = []
    if config_file is not None:
        found.append((config_file, _read(config_file)))
    others = ((directory or Path()) / "pyproject.toml", user_config_file(environ))
    found += [(path, _read(path)) for path in others if path is not None and path != config_file and path.is_file()]
    return found


def user_config_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """`~/.config/tasuki-mp/config.toml`, whether it exists or not; None for a user without a home."""
    base = environ.get("XDG_CONFIG_HOME", "")
    if base.startswith("/"):  # a relative one is to be ignored, says the XDG specification
        return Path(base, "tasuki-mp", "config.toml")
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:
        return None
    return home / ".config" / "tasuki-mp" / "config.toml"


def _read(path: Path) -> dict[str, object]:
    """The options in a TOML file. Those of a pyproject.toml are in its [tool.tasuki-mp], and no dsn is among them."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    is_project = path.name == "pyproject.toml"
    options: Any = content
    if is_project:
        tool = content.get("tool", {})
        if not isinstance(tool, dict):
            raise ConfigError(f"{path}: tool must be a table")
        options = tool.get("tasuki-mp", {})
        if not isinstance(options, dict):
            raise ConfigError(f"{path}: tool.tasuki-mp must be a table")
        if "dsn" in options:
            raise ConfigError(
                f"{path}: a dsn does not belong into pyproject.toml, which is shared and committed; "
                "set TASUKI_DSN, or put it into ~/.config/tasuki-mp/config.toml"
            )
    for key in options:
        if key not in PARSERS and key != "dsn":
            raise ConfigError(f"{path}: unknown option {key!r}; known are {', '.join(sorted(PARSERS))}")
    return dict(options)


# ── which database ────────────────────────────────────────────────────────────────────────────────────────────────────


def find_dsn(
    explicit: str | None = None,
    config_file: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    source: str = "--dsn",
) -> str:
    """The DSN to use, checked for its spelling.

    The first of `explicit` (which `source` gave), `dsn` in `config_file`, `TASUKI_DSN`, `DATABASE_URL` and `dsn` in
    `~/.config/tasuki-mp/config.toml`. May be the word `embedded`, which is never a default.
    Raises ConfigError that says what to set.
    """
    if explicit is not None:
        return check_dsn(explicit, source=source)
    if config_file is not None:
        options = _read(config_file)
        if "dsn" in options:
            return check_dsn(options["dsn"], source=f"{config_file}: dsn")
    for name in ("TASUKI_DSN", "DATABASE_URL"):
        if environ.get(name):
            return check_dsn(environ[name], source=name)
    for path, options in _files(None, environ, directory):
        if "dsn" in options:
            return check_dsn(options["dsn"], source=f"{path}: dsn")
    raise ConfigError(
        "which database? Set TASUKI_DSN (or DATABASE_URL) to something like postgresql://user@host/database, "
        f"give --dsn, or put dsn into {user_config_file(environ) or '~/.config/tasuki-mp/config.toml'}; "
        "--dsn embedded runs a PostgreSQL of its own"
    )


def check_dsn(dsn: object, *, source: str) -> str:
    """The same DSN, if libpq can read it. The error names `source` and never holds a password."""
    if not isinstance(dsn, str):
        raise ConfigError(f"{source} must be a text; write postgresql://user@host/database")
    if not dsn.strip():
        raise ConfigError(f"{source} is empty; write postgresql://user@host/database")
    dsn = dsn.strip()
    if dsn == EMBEDDED:
        return dsn
    scheme, is_url, rest = dsn.partition("://")
    if is_url and re.fullmatch(r"[A-Za-z0-9+]+", scheme):
        if scheme.startswith(("postgresql+", "postgres+")):
            shown = re.sub(r":[^@/]*@", ":…@", rest)
            raise ConfigError(f"{source}: {scheme}:// is SQLAlchemy's spelling; write postgresql://{shown}")
        if scheme not in ("postgresql", "postgres"):
            raise ConfigError(f"{source}: {scheme}:// is no PostgreSQL; write postgresql://user@host/database")
        if rest.partition("?")[0].count("@") > 1:
            raise ConfigError(f"{source}: more than one @; in a user name or password write it as %40")
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # libpq quotes what it choked on, and that may be a piece of the password.
        reason = re.sub(r'".*"', '"…"', str(error).strip().partition("\n")[0])
        raise ConfigError(f"{source} can't be read ({reason}); write postgresql://user@host/database") from None
    return dsn


def describe_dsn(dsn: str) -> str:
    """Which database that is, for people: `shop on db.example.com:5432 as ann`. Never holds a password."""
    if dsn == EMBEDDED:
        return "the embedded PostgreSQL"
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict

    values = {item.keyword.decode(): item.val.decode() for item in pq.Conninfo.get_defaults() if item.val is not None}
    values |= {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    user = values.get("user", "")
    database = values.get("dbname") or user
    hosts = (values.get("host") or values.get("hostaddr") or "a local socket").split(",")
    ports = (values.get("port") or "5432").split(",")
    places = [
        host
        if host.startswith(("/", "@", "a "))
        else f"{host}:{(ports[index] if index < len(ports) else ports[0]) or 5432}"
        for index, host in enumerate(hosts)
    ]
    return f"{database} on {', '.join(places)}" + (f" as {user}" if user else "")
