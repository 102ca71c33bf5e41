"""The group of all commands. A command's module is imported when it is called, or to list it in the help."""

from __future__ import annotations

import importlib
from typing import Final

import click

from tasuki_mp.version import __version__

COMMANDS: Final = {
    "run": "tasuki_mp.cli.run:run",
    "enqueue": "tasuki_mp.cli.enqueue:enqueue",
    "status": "tasuki_mp.cli.status:status",
    "top": "tasuki_mp.cli.top:top",
    "show": "tasuki_mp.cli.show:show",
    "jobs": "tasuki_mp.cli.jobs:jobs",
    "cancel": "tasuki_mp.cli.cancel:cancel",
    "logs": "tasuki_mp.cli.logs:logs",
    "stack": "tasuki_mp.cli.stack:stack",
    "retry": "tasuki_mp.cli.change:retry",
    "delete": "tasuki_mp.cli.change:delete",
    "move": "tasuki_mp.cli.change:move",
    "reschedule": "tasuki_mp.cli.change:reschedule",
    "report": "tasuki_mp.cli.report:report",
    "queue": "tasuki_mp.cli.queue:queue",
    "schedule": "tasuki_mp.cli.schedule:schedule",
    "batch": "tasuki_mp.cli.batch:batch",
    "replay": "tasuki_mp.cli.replay:replay",
    "prune": "tasuki_mp.cli.prune:prune",
    "export": "tasuki_mp.cli.export:export",
    "doctor": "tasuki_mp.cli.doctor:doctor",
    "migrate": "tasuki_mp.cli.migrate:migrate",
    "demo": "tasuki_mp.demo.command:demo",
}
"""In the order of the help."""


class LazyGroup(click.Group):
    """Imports what a command needs only for that command: `--version` must not wait for a database driver."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tasuki-mp", message="%(prog)s %(version)s")
# Its value is read in `tasuki_mp.cli`, where it serves errors that happen before anything is parsed, too.
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run CPU-heavy Python jobs on every core, durably, with nothing but Postgres."""
