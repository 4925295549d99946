"""How a command ends: a person's mistake in one line and a code, a defect in a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from runtime.errors import SutureError


def outcome(work: Callable[[], Any], may_say: Callable[[str], bool] = lambda message: True) -> int:
    """Does ``work`` and returns the exit code; a whole number that it returns is that code.

    Args:
        work: a command's work.
        may_say: asked before an error is shown; of several ranks one shows it.
    """
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except SutureError as error:
        if may_say(str(error)):
            click.echo(f"suture: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        if may_say(error.format_message()):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130


def exit_as_rank(code: int) -> NoReturn:
    """Ends a process that took part in RPC."""
    sys.stdout.flush()
    sys.stderr.flush()
    # RPC's and the loaders' threads are daemons of C++; a clean interpreter exit can wait for them for ever.
    os._exit(code)
