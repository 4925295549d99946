"""One warm process from which the members of the hostile runs are forked: torch is imported once, not a hundred times.

    python forker.py      (one JSON order a line on stdin; see `Order`)

An honest member is the real command line and nothing else. A hostile one is the same command line with one thing
changed, by `traitor` or `false_server`. Forking is sound because nothing has been computed here and no connection made:
there is one thread, and gRPC and torch have been imported and not used.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # a library that starts threads while it is imported cannot be forked from
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[1])]

from forks import ask, begin_session, command_line, ended, fork, leave_code, obey, warm_process


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to start.

    Attributes:
        arguments: of the command line.
        log: the file that gets what it prints; beside it ``.code`` gets its exit code.
        change: what a hostile member does otherwise, a name that `traitor` or `false_server` knows; empty for an honest
            one.
        environment: variables to set.
    """

    arguments: list[str]
    log: str
    change: str = ""
    environment: dict[str, str] = field(default_factory=dict)


class Forker:
    """The warm process, as the tests see it; any thread may use it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process, self._lock = process, threading.Lock()

    def start(self, order: Order) -> int:
        """Starts a member; returns its process id, which is its session's, too."""
        with self._lock:
            return ask(self._process, asdict(order))


@contextmanager
def open_forker() -> Iterator[Forker]:
    """A warm process that is gone afterwards."""
    with warm_process(__file__) as process:
        yield Forker(process)


def _be(order: Order) -> int:
    """A keeper in a session of its own, and the member as its child: whatever ends the member, its code is kept."""
    begin_session(order.log, order.environment)
    leave_code(order.log, ended(fork(lambda: _be_member(order))))
    return 0


def _be_member(order: Order) -> int:
    # Python reads this variable when it starts.
    sys.path[:0] = [path for path in order.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if order.change:
        if order.arguments[0] == "serve":
            import false_server as hostile
        else:
            import traitor as hostile
        hostile.change(order.change)
    return command_line(order.arguments)


if __name__ == "__main__":
    obey(lambda order: _be(Order(**order)))
