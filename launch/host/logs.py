"""Logging, set up once a process: every line carries its rank's name, and goes beside a live display."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

from rich.console import Console
from rich.logging import RichHandler


def set_up(rank: str, console: Console | None = None) -> None:
    """Logs INFO and above to ``console``'s live display, or as plain lines to stderr.

    Args:
        rank: goes before each line.
        console: this process's live display, None where it has none.
    """
    root = logging.getLogger()
    handler: logging.Handler
    if console is not None and console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s {rank}: %(message)s", "%H:%M:%S", rank))
    if isinstance(handler, RichHandler):
        handler.setFormatter(_OneLine(f"{rank}: %(message)s", None, rank))
    root.handlers[:] = [handler]
    # Lines of another process would tear the server's live display: beside one, other ranks only warn.
    beside_display = console is None and sys.stderr.isatty() and "CI" not in os.environ
    root.setLevel(os.environ.get("SUTURE_LOG", "WARNING" if beside_display else "INFO").upper())
    for noisy in ("PIL", "torch", "tensorboard"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Below an error it tells only where it keeps its fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    threading.excepthook = _unless_told_elsewhere
    # torch warns about its own internals (RPC's use of deprecated parts of itself); not for our users.
    warnings.filterwarnings("ignore", module=r"torch\..*")


class _OneLine(logging.Formatter):
    """An event is a line, and nothing in it that a terminal obeys: what a peer says may stand in it."""

    def __init__(self, layout: str, times: str | None, rank: str) -> None:
        super().__init__(layout, times)
        self._twice = f"{rank}: {rank}: "

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = "".join(sign if sign.isprintable() else " " for sign in super().formatMessage(record))
        # What says of whom it speaks, for the server's log, is not said twice in that one's own.
        return text.replace(self._twice, self._twice[: len(self._twice) // 2], 1)


def _unless_told_elsewhere(failure: threading.ExceptHookArgs) -> None:
    """As usual, but for TensorBoard's threads: their errors are raised to whoever writes next, which tells a person."""
    if not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)
