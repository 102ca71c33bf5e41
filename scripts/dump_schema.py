"""Write sql/schema.sql, the schema that all migrations make together, for people to read.

With `--check`: only say whether it is what the migrations make now.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tasuki_mp import embedded
from tasuki_mp.migrate import migrate

SCHEMA = Path(__file__).resolve().parents[1] / "sql" / "schema.sql"
HEADER = """\
-- What the migrations make together, written by scripts/dump_schema.py. For reading: nothing runs this file.
-- The partitions for single days are left out.
"""
NOISE = re.compile(r"--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*")
DOLLAR_QUOTE = re.compile(r"\$\w*\$")


def dump() -> str:
    """The schema as SQL, out of a database that was just migrated."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-schema-"))
    folder.chmod(0o711)  # if root runs this, the server runs as somebody else
    try:
        with embedded.start(folder, fsync=False) as server:
            migrate(server.dsn)
            done = subprocess.run(
                [
                    embedded.installed() / "bin" / "pg_dump",
                    "--schema-only",
                    "--schema=tasuki",
                    "--exclude-table=tasuki.*_[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]",
                    "--no-owner",
                    f"--dbname={server.dsn}",
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        if not server.wait_stopped():
            raise RuntimeError(f"{server} does not stop")
    finally:
        shutil.rmtree(folder)
    return HEADER + tidy(done.stdout)


def tidy(text: str) -> str:
    """Without what pg_dump says about itself and its session. The bodies of functions stay as they are."""
    lines: list[str] = []
    is_in_body = False
    for line in text.splitlines():
        if not is_in_body and (NOISE.fullmatch(line) or not line):
            if lines and lines[-1]:
                lines.append("")
            continue
        if len(DOLLAR_QUOTE.findall(line)) % 2:
            is_in_body = not is_in_body
        lines.append(line)
    return "\n".join(["", *lines]).rstrip("\n") + "\n"


def main() -> int:
    """0 if the file is up to date now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the file is stale")
    is_check = parser.parse_args().check
    schema = dump()
    if not is_check:
        SCHEMA.write_text(schema)
    elif not SCHEMA.exists() or SCHEMA.read_text() != schema:
        print("sql/schema.sql is stale: run scripts/dump_schema.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
