"""`python -m scripts.without_batches FOLDER`: a copy of this working copy without batches, schedules, follow-ups and limits.

For one question only, what these cost a job that has nothing to do with them:

    python -m scripts.without_batches /tmp/without
    python -m scripts.ab /tmp/without noop --together --pairs 12

Whatever such a job meets on its way is taken out: in the child what collects follow-up jobs and tells a map's job apart, in
the supervisor two looks at an outcome, in the statements their parts, and in the database triggers, indexes and a CHECK. What
looks around by itself every now and then stays, and finds nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from scripts.harness.runner import ROOT

CHILD: Final = "tasuki_mp/child/main.py"
OUTBOX: Final = "tasuki_mp/supervisor/outbox.py"
WORK: Final = "tasuki_mp/store/work.py"
LEASE: Final = "sql/queries/lease.sql"
FINISH: Final = "sql/queries/finish.sql"

REPLACED: Final = (
    (CHILD, "\nclass Child:\n", "\n_NO_ROWS: list[JobRow] = []\n\n\nclass Child:\n"),
    (CHILD, "self._call(handler, job, followups) if handler", "self._call(handler, job, _NONE_ASKED_FOR) if handler"),
    (CHILD, "checkpoint, is_fixed, rows)", "checkpoint, is_fixed, _NO_ROWS)"),
    (
        CHILD,
        "pack(frame), spool=spool)\n        if followups.count:\n            followups.close()\n",
        "pack(frame))\n",
    ),
    (CHILD, "runnable(handler, followups)", 'handler.function, handler.kind == "async"'),
    (OUTBOX, "        if entry.is_alone:\n", "        if False:\n"),
    (LEASE, " or q.max_running is not null or q.max_running_per_key is not null", ""),
    (FINISH, ", j.limits, j.key, j.unique_key,\n      j.retry_of, j.batch_id, j.schedule\n", ", j.limits\n"),
    (FINISH, "owner, limits, key, unique_key, retry_of, batch_id\n  )", "owner, limits\n  )"),
    (FINISH, "owner, limits,\n    key, unique_key, retry_of, batch_id\n", "owner, limits\n"),
    (FINISH, "case when locked.kind in ('completed', 'failed', 'canceled') then locked.batch_id end", "null::bigint"),
)
"""Which file, what stands in it once, and what stands there instead."""

CUT: Final = (
    (CHILD, "            if handler is not None and handler.may_follow_up", "            outcome = self._call("),
    (CHILD, "        followups = _NONE_ASKED_FOR\n", '        retire = ""\n'),
    (CHILD, "            if followups.count and isinstance(", "        except BaseException as error:"),
    (CHILD, "            if is_list(job.payload):", "                value = call({**handler.decode"),
    (OUTBOX, "        self._events.batches_touched({done.batch_id for", "        over: list[work.Finished] = []\n"),
    (WORK, "    following = [(item.id, row)", '    return {\n        "owner": owner,'),
    (WORK, '        "f_ids": ', '        "notify": '),
    (FINISH, "followed as (\n", "told as materialized ("),
    (
        FINISH,
        "    select queue, case when scheduled_at <=",
        "    select\n      queue,\n      case\n        when (%(delays)s",
    ),
    (FINISH, "  union all\n  -- Costs one look", ")\nselect\n  locked.id,"),
)
"""Which file, and from where up to where it loses its text."""

DROPPED: Final = """
drop trigger job_free_key_deleted on tasuki.job;
drop trigger job_free_key_pending on tasuki.job;
drop trigger job_pass_key_on_deleted on tasuki.job;
drop trigger job_pass_key_on_put_off on tasuki.job;
drop trigger job_free_unique_key on tasuki.job;
drop trigger job_free_dependents on tasuki.job;
drop trigger job_forget_dependencies on tasuki.job;
drop trigger follow_failure on tasuki.job_archive_failed;
drop index tasuki.job_counted;
drop index tasuki.job_held_key;
drop index tasuki.job_schedule;
drop index tasuki.job_retry_of;
drop index tasuki.job_batch;
drop index tasuki.job_archive_retry_of;
drop index tasuki.job_archive_batch;
alter table tasuki.job drop constraint job_keys;
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.without_batches", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the copy goes; it must not be there yet")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} is there already")
    make(given.folder)
    return 0


def make(folder: Path) -> None:
    """Write the copy. Raises ValueError where the program reads otherwise than this script knows it."""
    for part in ("tasuki_mp", "sql", "scripts"):
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in REPLACED:
        text = (folder / name).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{name} has not once, but {text.count(old)} times: {old!r}")
        (folder / name).write_text(text.replace(old, new))
    for name, start, end in CUT:
        before, found, rest = (folder / name).read_text().partition(start)
        _, also_found, after = rest.partition(end)
        if not found or not also_found:
            raise ValueError(f"{name} has no text from {start!r} to {end!r}")
        (folder / name).write_text(before + end + after)
    newest = max((folder / "sql" / "migrations").glob("*.sql"))
    number = int(newest.name.partition("_")[0]) + 1
    (newest.parent / f"{number:04}_without_batches.sql").write_text(DROPPED)


if __name__ == "__main__":
    sys.exit(main())
