"""Whether a connection to the database is safe from whoever sits between it and us."""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

_SAFE: Final = "verify-full"


class Unverified(msgspec.Struct, frozen=True):
    """Another machine that may be somebody else's than we think, and the `sslmode` that allows it."""

    host: str
    sslmode: str
    advice: str = "sslmode=verify-full, with the server's authority in sslrootcert; see docs/operations.md"

    def __str__(self) -> str:
        return f"with sslmode={self.sslmode} nothing proves that {self.host} is the database's server"


def unverified(dsn: str) -> Unverified | None:
    """The first other machine that libpq would connect to for this dsn without asking who it is; None if there is none.

    What the dsn leaves open, libpq takes from the environment, and so does this.
    """
    values = {item.keyword.decode(): item.val.decode() for item in pq.Conninfo.get_defaults() if item.val is not None}
    values |= {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    sslmode = values.get("sslmode", "prefer")
    # With the system's authorities libpq takes nothing less than verify-full.
    if sslmode == _SAFE or values.get("sslrootcert") == "system":
        return None
    hosts = (values.get("hostaddr") or values.get("host") or "").split(",")
    return next((Unverified(host, sslmode) for host in hosts if not _is_here(host)), None)


def _is_here(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
