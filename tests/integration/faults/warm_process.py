"""One warm process from which every member of every fault run is forked: torch is imported once, not forty times.

    python warm_process.py      (one JSON order a line on stdin; see `Order`)

What runs is the real command line. Each member has a keeper, a fork of this process that forks the member and, as
systemd with Restart=on-failure does, starts it again. That is sound because nothing has been computed here and no
connection made: there is one thread, and gRPC and torch have been imported and not used.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a library that starts threads while it is imported cannot be forked from
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parent)]

import plant
import replayed
from site_own import FINAL

import launch.cli
from launch.enclosure import load_the_lazy

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


def main() -> None:
    load_the_lazy()
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads before the first fork"
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # nobody waits for the forks: they leave their code in a file
    print("ready", flush=True)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = _fork(lambda order=order: _play(order))
        print(pid, flush=True)


def _fork(work: Callable[[], int]) -> int:
    """Runs ``work`` in a fork of this process, whose exit code it returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _play(order: Order) -> int:
    """A keeper (or a replay), in a session, a namespace and with a log of its own; its members are in its session."""
    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order.environment)
    if order.host:
        _enter(order.host)
    code = 70
    try:
        if order.who == "replay":
            print(replayed.replay(*order.arguments), flush=True)
            code = 0
        else:
            code = _keep(order)
    finally:
        draft = Path(f"{order.log}.draft")
        draft.write_text(str(code))
        draft.rename(f"{order.log}.code")
    return code


def _keep(order: Order) -> int:
    """Starts the member until it has ended for good; says each end. Returns the last exit code."""
    events = plant.Events(Path(order.events))
    while True:
        pid = _fork(lambda: _be_member(order))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        events.say("ended", who=order.who, code=code)
        if code in FINAL:
            return code
        time.sleep(_PAUSE)


def _be_member(order: Order) -> int:
    plant.plant(order.who, [plant.Fault(**fault) for fault in order.faults], Path(order.events))
    return _command_line(order.arguments)


def _command_line(arguments: Sequence[str]) -> int:
    sys.argv = ["suture", *arguments]
    try:
        launch.cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _enter(host: str) -> None:
    """Moves this process into the network namespace ``host``."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{host}").open() as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {host}")


if __name__ == "__main__":
    main()
