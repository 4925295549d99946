"""Ranks on this machine that begin with everything imported: forked from one process that has done it once.

Importing torch and what goes with it takes a process seconds, and five ranks five times that on the same cores. Here a
fork server (Python's own: one thread, which has imported and done nothing else) does it once, while the command itself
still imports, and every rank is its fork. The ranks are one person's, on one machine: that they know each other's
address layout gives nobody anything that the user's own debugger would not. Across machines each rank is started by
torchrun, and imports for itself.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import TextIO

START_METHOD = "forkserver"
IMPORTED = (
    "suture.train",
    "suture.launch.roles.server",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchmetrics.functional",
    "matplotlib.font_manager",
)
"""Also what a rank would import later: with its first optimizer step (torch._dynamo), score and curve."""


def begin(*further: str) -> None:
    """Starts the fork server; it imports while this process goes on. A second call does nothing.

    Args:
        further: modules that it is to import as well.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would; each rank sets its own threads
    multiprocessing.get_context(START_METHOD).set_forkserver_preload([*IMPORTED, *further])
    multiprocessing.forkserver.ensure_running()


def play(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """One rank's whole life, in a fork; returns when it ended well, so that torchrun's agent waits for all.

    Args:
        arguments: as ``launch/run.py`` takes them.
        environment: what was set since the fork server began, whose environment a fork has.
    """
    from suture.launch.rank import rank_outcome

    os.environ |= environment
    for stream in (sys.stdout, sys.stderr):
        _show_each_line(stream)
    try:
        code = rank_outcome(arguments)
    except Exception:  # a defect: torchrun's agent would keep its traceback to itself
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """The agent releases its ranks together; one that was killed never will."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(0)


def _show_each_line(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:  # where the output is a file, a person may be following it
        reconfigure(line_buffering=True)
