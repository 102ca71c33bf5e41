"""The command line: `tasuki-mp`. This module is the way in and the way out; each command has a module of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tasuki_mp import errors
from tasuki_mp.config import ExitCode

INTERRUPTED = 130
"""As shells have it: 128 and the number of SIGINT."""
BROKEN_PIPE = 141
"""128 and the number of SIGPIPE: whoever read our output left, and nothing is wrong."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code. What a user did wrong is one line, never a traceback."""
    code = exit_code_of(sys.argv[1:] if arguments is None else list(arguments))
    if "concurrent.futures.process" in sys.modules:
        # At exit that library joins its threads, and after a child died in the middle of its executor's pipe one of
        # them never ends. Everything is written by now and every child is dead.
        gc.collect()  # the semaphores of abandoned executors, which would be reported as leaked
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def exit_code_of(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    if sys.platform == "win32":
        _complain("jobs run on Linux, and enqueueing works on macOS too, but nothing on Windows: use WSL")
        return ExitCode.USAGE
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except errors.TasukiError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _complain(_words(error))
        return exit_code(error)
    except Exception:  # noqa: BLE001  # the last place where anything can be said about it
        traceback.print_exc()
        _complain("this was not expected; please report it with the lines above")
        return ExitCode.FAILED
    return code


def _invoke(arguments: list[str]) -> int:
    import click

    from tasuki_mp.cli.commands import cli

    if "_TASUKI_MP_COMPLETE" in os.environ:
        cli.main(arguments, prog_name="tasuki-mp")  # prints what the shell may complete, and exits
    try:
        with cli.make_context("tasuki-mp", list(arguments)) as context:  # which empties the list
            result = cli.invoke(context)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        # Not loaded, the driver has raised nothing; and to load it just to ask would cost more than all the rest.
        if "psycopg" not in sys.modules:
            raise
        raise_explained(error)
    return result if isinstance(result, int) else ExitCode.OK


def raise_explained(error: Exception) -> NoReturn:
    """Raise a driver's error as ours, and any other one as it is."""
    import psycopg

    from tasuki_mp.cli.database import explain

    if isinstance(error, psycopg.Error):
        raise explain(error) from error
    raise error


def exit_code(error: errors.TasukiError) -> ExitCode:
    """What an error means for the exit status."""
    match error:
        case errors.DatabaseError():
            return ExitCode.DATABASE
        case errors.AppImportError() | errors.HandlerError():
            return ExitCode.APP
        case errors.ConfigError() | errors.PayloadError() | errors.UnknownHandlerError() | errors.LineError():
            return ExitCode.USAGE
        case errors.LockedError():
            return ExitCode.LOCKED
        case _:
            return ExitCode.FAILED


def _words(error: errors.TasukiError) -> str:
    from tasuki_mp.logs import escape

    if isinstance(error, errors.AppImportError):
        return escape(str(error), limit=None, keep="\n")  # the traceback is the user's own code: it is the message
    return escape(" ".join(str(error).split()))


def _complain(message: str) -> None:
    print(f"tasuki-mp: {message}", file=sys.stderr)
