"""What the warm processes share from which members of runs are forked, and how a test starts one.

A warm process has imported torch and gRPC and used neither, and has one thread: so it may be forked. It reads orders, one
JSON object a line, and answers each with the process id of the fork that follows it.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DEFECT = 70


@contextmanager
def warm_process(script: str) -> Iterator["subprocess.Popen[str]"]:
    """A warm process that is ready, and gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: "subprocess.Popen[str]", order: dict[str, Any]) -> int:
    """Gives an order; returns the fork's process id."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def obey(play: Callable[[dict[str, Any]], int]) -> None:
    """In a warm process: follows orders, each in a fork of its own, until there are no more."""
    from suture.cli import COMMANDS
    from suture.launch.host.sandbox_setup import load_the_lazy

    for module, _ in COMMANDS.values():
        importlib.import_module(f"suture.{module}")
    load_the_lazy()
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads before the first fork"
    # Nobody waits for the forks: they leave their code in a file.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(fork(lambda order=order: play(order)), flush=True)


def fork(work: Callable[[], int]) -> int:
    """Runs ``work`` in a fork of this process, whose exit code it returns."""
    pid = os.fork()
    if pid:
        return pid
    code = DEFECT
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


def ended(pid: int) -> int:
    """Waits for a fork of this process; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begin_session(log: str, environment: dict[str, str]) -> None:
    """A session, a log and an environment of this fork's own; its members will be in its session."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)


def leave_code(log: str, code: int) -> None:
    """Leaves an exit code beside the log: whoever was asked for is then over."""
    draft = Path(f"{log}.draft")
    draft.write_text(str(code))
    draft.rename(f"{log}.code")


def command_line(arguments: Sequence[str]) -> int:
    """The real command line; returns its exit code."""
    import suture.cli

    sys.argv = ["suture", *arguments]
    try:
        suture.cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
