"""One warm process from which the members of the hostile runs are forked: torch is imported once, not a hundred times.

    python forker.py      (one JSON order a line on stdin; see `Order`)

An honest member is the real command line and nothing else. A hostile one is the same command line with one thing
changed, by `traitor` or `false_server`. Forking is sound because nothing has been computed here and no connection made:
there is one thread, and gRPC and torch have been imported and not used.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # a library that starts threads while it is imported cannot be forked from
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]


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
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asdict(order)) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


@contextmanager
def open_forker() -> Iterator[Forker]:
    """A warm process that is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Forker(process)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    import launch.cli  # noqa: F401
    from launch.enclosure import load_the_lazy

    load_the_lazy()
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads before the first fork"
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # nobody waits for the forks: they leave their code in a file
    print("ready", flush=True)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        if pid := os.fork():
            print(pid, flush=True)
            continue
        _be(order)


def _be(order: Order) -> None:
    """A keeper in a session of its own, and the member as its child: whatever ends the member, its code is kept."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order.environment)
    code = 70
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        draft = Path(f"{order.log}.draft")
        draft.write_text(str(code))
        draft.rename(f"{order.log}.code")
        os._exit(0)
    try:
        code = _command_line(order)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command_line(order: Order) -> int:
    import launch.cli

    sys.argv = ["suture", *order.arguments]
    # Python reads this variable when it starts.
    sys.path[:0] = [path for path in order.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if order.change:
        if order.arguments[0] == "serve":
            import false_server as hostile
        else:
            import traitor as hostile
        hostile.change(order.change)
    try:
        launch.cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
