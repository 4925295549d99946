"""One warm process from which every member of every fault run is forked: torch is imported once, not forty times.

    python warm_process.py      (one JSON order a line on stdin; see `Order`)

What runs is the real command line. Each member has a keeper, a fork of this process that forks the member and, as
systemd with Restart=on-failure does, starts it again. That is sound because nothing has been computed here and no
connection made: there is one thread, and gRPC and torch have been imported and not used.
"""

import ctypes
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a library that starts threads while it is imported cannot be forked from
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
_HERE = Path(__file__).resolve()
sys.path[:0] = [str(_HERE.parents[3]), str(_HERE.parents[1]), str(_HERE.parent)]

import plant
import replayed
from forks import DEFECT, begin_session, command_line, ended, fork, leave_code, obey
from site_own import FINAL

_CLONE_NEWNET = 0x40000000
_PAUSE = 0.25
"""Seconds until a member is started again, unless it has ended with a code in `FINAL` (docs/deploy)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to start.

    Attributes:
        who: "server", a client's name, or "replay".
        arguments: of the command line; for "replay" those of `replayed.replay`.
        log: the file that gets what it prints; beside it ``.code`` gets its last exit code, and it is then over.
        host: a network namespace's name, empty for this one.
        faults: what is planted in the member; see `plant.Fault`.
        events: the file in which members write what happens.
        environment: variables to set.
    """

    who: str
    arguments: list[str]
    log: str
    host: str = ""
    faults: list[dict] = field(default_factory=list)
    events: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def _play(order: Order) -> int:
    """A keeper (or a replay), in a session, a namespace and with a log of its own; its members are in its session."""
    begin_session(order.log, order.environment)
    if order.host:
        _enter(order.host)
    code = DEFECT
    try:
        if order.who == "replay":
            print(replayed.replay(*order.arguments), flush=True)
            code = 0
        else:
            code = _keep(order)
    finally:
        leave_code(order.log, code)
    return code


def _keep(order: Order) -> int:
    """Starts the member until it has ended for good; says each end. Returns the last exit code."""
    events = plant.Events(Path(order.events))
    while True:
        code = ended(fork(lambda: _be_member(order)))
        events.say("ended", who=order.who, code=code)
        if code in FINAL:
            return code
        time.sleep(_PAUSE)


def _be_member(order: Order) -> int:
    plant.plant(order.who, [plant.Fault(**fault) for fault in order.faults], Path(order.events))
    return command_line(order.arguments)


def _enter(host: str) -> None:
    """Moves this process into the network namespace ``host``."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{host}").open() as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {host}")


if __name__ == "__main__":
    obey(lambda order: _play(Order(**order)))
