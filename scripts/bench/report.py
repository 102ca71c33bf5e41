"""`python -m scripts.bench.report [--check] [RESULTS.json…]`: the table and the pictures of docs/benchmarks.md.

Made of what `python -m scripts.bench … --json` has printed; by default of what is kept in docs/figures. Where a row is in
several results, all of its pairs count. With `--check`: only say whether the page and the pictures are what these make.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.bench import plots
from scripts.bench.__main__ import BENCHMARKS
from scripts.bench.figures import HEAD, Row
from scripts.harness.runner import ROOT

DOCS: Final = ROOT / "docs"
KEPT: Final = DOCS / "figures"
PAGE: Final = DOCS / "benchmarks.md"
TABLE: Final = re.compile(r"(?<=<!-- begin of the table -->\n).*?(?=<!-- end of the table -->\n)", re.DOTALL)
"""Where the page has it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json", help="[those in docs/figures]")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something would change")
    given = parser.parse_args()
    files = given.results or sorted(KEPT.glob("*.json"))
    if not files:
        parser.error(f"no results given, and none in {KEPT.relative_to(ROOT)}")
    made = report([json.loads(file.read_text("utf-8")) for file in files], PAGE.read_text("utf-8"))
    changed = {file: text for file, text in made.items() if not file.exists() or file.read_text("utf-8") != text}
    for file, text in changed.items():
        if given.check:
            print(f"{file.relative_to(ROOT)} is not what the results make: python -m scripts.bench.report")
        else:
            file.write_text(text, "utf-8")
            print(file.relative_to(ROOT))
    return 1 if given.check and changed else 0


def report(results: Sequence[Mapping[str, Any]], page: str) -> dict[Path, str]:
    """The files and what belongs into them; those pictures only whose rows are there."""
    if not TABLE.search(page):
        raise ValueError(f"{PAGE.name} does not say where the table belongs")
    rows = merged(results)
    machines = ", ".join(dict.fromkeys(result["machine"] for result in results))
    table = "\n".join([HEAD, *(row.as_markdown() for row in rows.values())])
    commands = "\n".join(dict.fromkeys(f"{result['command']}  # at {result['revision']}" for result in results))
    said = f"{machines}\n\n```shell\n{commands}\n```\n\n{table}\n"
    drawn = {"noop": plots.noop(rows), "shares": plots.shares(rows), "backlog": plots.backlog(rows)}
    pictures = {DOCS / f"{name}.svg": list(parts) for name, parts in drawn.items()}
    return {
        PAGE: TABLE.sub(lambda _: said, page),
        **{file: plots.svg(parts, machines) for file, parts in pictures.items() if parts},
    }


def merged(results: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """The rows by their names, in the order of the benchmark."""
    found: dict[str, Row] = {}
    for row in (Row.from_json(row) for result in results for row in result["rows"]):
        found[row.name] = found[row.name].with_those_of(row) if row.name in found else row
    return {name: found[name] for name in BENCHMARKS if name in found}


if __name__ == "__main__":
    sys.exit(main())
