"""The SQL that ships with the package, as texts. A name without a file fails where it is asked for: at import."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import Final

import msgspec

_ROOT: Final = resources.files("tasuki_mp") / "sql"
_MIGRATION_FILE: Final = re.compile(r"(?P<number>[0-9]{4})_(?P<name>[a-z0-9_]+)\.sql")
_NO_TRANSACTION: Final = b"-- no transaction"


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema. With `-- no transaction` as its first line it is a single statement that runs alone."""

    number: int
    name: str
    text: bytes

    @property
    def file_name(self) -> str:
        return f"{self.number:04}_{self.name}.sql"

    @property
    def checksum(self) -> str:
        """Of what the file says; how its lines end does not count."""
        return hashlib.sha256(self.text.replace(b"\r\n", b"\n")).hexdigest()

    @property
    def has_transaction(self) -> bool:
        return not self.text.startswith(_NO_TRANSACTION)


def query(name: str) -> bytes:
    """The text of `sql/queries/<name>.sql`, fit for psycopg. Call it at a module's top level."""
    return (_ROOT / "queries" / f"{name}.sql").read_bytes()


def query_names() -> list[str]:
    return sorted(file.name.removesuffix(".sql") for file in (_ROOT / "queries").iterdir())


def migrations() -> list[Migration]:
    """All migrations in their order. Raises ValueError unless they are numbered 1, 2, 3 and so on."""
    found = []
    for file in (_ROOT / "migrations").iterdir():
        match = _MIGRATION_FILE.fullmatch(file.name)
        if match is None:
            raise ValueError(f"{file.name} in sql/migrations is not named like 0001_what_it_does.sql")
        found.append(Migration(number=int(match["number"]), name=match["name"], text=file.read_bytes()))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered without gaps: {[m.file_name for m in found]}")
    return found
