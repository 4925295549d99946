"""How a command ends: a person's mistake in one line and a code, a defect in a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from suture.runtime.data.text import plain_name
from suture.runtime.errors import CheckpointError, SutureError
from suture.runtime.host.disk import is_the_disk

STOPPED = 130
"""The exit code of a command that Ctrl-C or SIGTERM has ended, as shells have it."""
_OWN = 0o077  # takes every right from others: what a command writes holds or shows patients' data


def outcome(work: Callable[[], Any], may_say: Callable[[str], bool] = lambda message: True) -> int:
    """Does ``work`` and returns the exit code; a whole number that it returns is that code.

    Every command and every rank goes through here, so this is where the umask is set: files come out with mode 0600 and
    folders with 0700, here and in whatever is started from here.

    Args:
        work: a command's work.
        may_say: asked before an error is shown; of several ranks one shows it.
    """
    os.umask(_OWN)
    _print_any_name()
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except SutureError as error:
        if may_say(str(error)):
            click.echo(f"suture: {plain_name(str(error))}", err=True)
        return error.exit_code
    except OSError as error:
        if not is_the_disk(error):
            raise
        message = f"{error}; make room there or mend the disk, then start again"
        if may_say(message):
            click.echo(f"suture: {message}", err=True)
        return CheckpointError.exit_code
    except click.ClickException as error:
        if may_say(error.format_message()):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return STOPPED


def _print_any_name() -> None:
    """Has the terminal show what it cannot as an escape: a file's name may be in no encoding at all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_as_rank(code: int) -> NoReturn:
    """Ends a process that took part in RPC."""
    sys.stdout.flush()
    sys.stderr.flush()
    # RPC's and the loaders' threads are daemons of C++; a clean interpreter exit can wait for them for ever.
    os._exit(code)
