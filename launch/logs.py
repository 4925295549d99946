"""Logging, set up once a process: every line carries its rank's name, and goes beside a live display."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rich.console import Console
from rich.logging import RichHandler


def set_up(rank: str, console: Console | None = None) -> None:
    """Logs INFO and above to ``console``'s live display, or as plain lines to stderr."""
    root = logging.getLogger()
    handler: logging.Handler
    if console is not None and console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {rank}: %(message)s", "%H:%M:%S"))
    if isinstance(handler, RichHandler):
        handler.setFormatter(logging.Formatter(f"{rank}: %(message)s"))
    root.handlers[:] = [handler]
    # Lines of another process would tear the server's live display: beside one, other ranks only warn.
    beside_display = console is None and sys.stderr.isatty() and "CI" not in os.environ
    root.setLevel(os.environ.get("SUTURE_LOG", "WARNING" if beside_display else "INFO").upper())
    for noisy in ("matplotlib", "PIL", "torch", "tensorboard"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # torch warns about its own internals (RPC's use of deprecated parts of itself); not for our users.
    warnings.filterwarnings("ignore", module=r"torch\..*")
