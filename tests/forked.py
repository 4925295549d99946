"""Commands that tests start, as forks of one process that has imported everything and done nothing else.

A command imports torch for seconds before it does anything. `Popen` and `run` here are those of `subprocess`, for the commands
``python -m suture ...`` and ``python launch/run.py ...``: same arguments, pipes, signals and exit codes, but the process that they
start has its imports already. Anything else they start as `subprocess` does. ``ip netns exec NAME`` may stand before them. What
depends on the environment at import, or on a process's own memory, is to be started by `subprocess` itself.
"""

import atexit
import ctypes
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver, util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "launch" / "run.py")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_LARGEST = 1 << 20
# A library that starts threads while it is imported cannot be forked from.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _WarmProcess:
    """The process that is forked; begun by the first command of a pytest worker."""

    def __init__(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                pass_fds=[its.fileno()],
                env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            )
        self._socket = ours
        assert ours.recv(16) == b"ready"

    def fork(self, order: dict, descriptors: Sequence[int]) -> int:
        """Starts one command; returns its process id. It is a child of this process, as if this had forked it."""
        libc = ctypes.CDLL(None)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(descriptors))
            return int(self._socket.recv(16))
        finally:
            libc.prctl(_SUBREAPER, 0, 0, 0, 0)

    def end(self) -> None:
        """It ends when nobody can order any more."""
        self._socket.close()
        self.process.wait()


_warm: _WarmProcess | None = None


def pid() -> int | None:
    """The process id of the warm process, where there is one: no test has left it behind."""
    return _warm.process.pid if _warm else None


def _forked(order: dict, descriptors: Sequence[int]) -> int:
    global _warm
    if _warm is None:
        _warm = _WarmProcess()
        atexit.register(_warm.end)
    return _warm.fork(order, descriptors)


def _entry(args: object) -> dict | None:
    """Which entry point a command line starts, where and with what; None where it starts something else."""
    if not isinstance(args, list):
        return None
    words = [os.fspath(word) for word in args]
    namespace = words[3] if words[:3] == ["ip", "netns", "exec"] else ""
    if words[4 * bool(namespace)] != sys.executable:
        return None
    words = words[4 * bool(namespace) + 1 :]
    if words[:2] == ["-m", "suture"]:
        return {"program": "suture", "arguments": words[2:], "namespace": namespace}
    return {"program": RUN, "arguments": words[1:], "namespace": namespace} if words[:1] == [RUN] else None


class Popen(subprocess.Popen):
    """`subprocess.Popen`, forked from the warm process where it can be."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        entry = _entry(args)
        if entry is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        _, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *how = rest
        _, _, _, _, umask, new_session, _ = how
        assert not (executable or preexec_fn or pass_fds or shell), "start it cold"
        order = entry | {
            "cwd": os.fspath(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "umask": umask,
            "new_session": new_session,
        }
        given = (p2cread, c2pwrite, errwrite)
        self.pid = _forked(order, [own if own != -1 else standard for standard, own in enumerate(given)])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(
    args, *, input=None, capture_output=False, timeout=None, check=False, **how
) -> subprocess.CompletedProcess:
    """`subprocess.run` with `Popen` above."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        how["stdin"] = subprocess.PIPE
    with Popen(args, **how) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        ended.check_returncode()
    return ended


# In the warm process -----------------------------------------------------------------------------


def _serve(orders: socket.socket) -> None:
    """Forks a command an order, until nobody can order any more."""
    orders.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, _LARGEST, 3)
        if not message:
            return
        pid = _fork_for_its_parent()
        if pid == 0:
            orders.close()
            _become(json.loads(message), descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        orders.send(str(pid).encode())


def _fork_for_its_parent() -> int:
    """Forks twice: who is between dies, and the kernel gives the child to the test's process. Returns 0 in the child."""
    reading, writing = os.pipe()
    between = os.fork()
    if between:
        os.close(writing)
        os.waitpid(between, 0)
        with os.fdopen(reading) as said:
            return int(said.read())
    pid = os.fork()
    if pid:
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.close(reading)
    os.close(writing)
    return 0


def _become(order: dict, descriptors: Sequence[int]) -> None:
    """Plays the command; ends as Python does, with its exit code."""
    if order["new_session"]:
        os.setsid()
    if order["umask"] >= 0:
        os.umask(order["umask"])
    if order["namespace"]:
        _enter(order["namespace"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    # The standard streams keep nothing of the warm process, and what they write is UTF-8 as under Python's own start.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    util.spawnv_passfds = _spawn_warm
    if order["program"] == "suture":
        import suture.__main__ as main

        sys.modules["__main__"] = main  # whoever starts processes by multiprocessing starts them from it
        sys.argv = [main.__file__, *order["arguments"]]
        main.main()
    else:
        from suture.launch.rank import run_rank_command

        sys.argv = [RUN, *order["arguments"]]
        run_rank_command()


def _enter(namespace: str) -> None:
    """Goes into a network namespace, as ``ip netns exec`` does."""
    with Path("/run/netns", namespace).open() as opened:
        if ctypes.CDLL(None, use_errno=True).setns(opened.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns: {namespace}")


def _spawn_warm(path, args, passed, _spawn=util.spawnv_passfds) -> int:
    """Starts a process of `multiprocessing`; its fork server is a fork of this process, where that has one thread."""
    if "multiprocessing.forkserver" not in args[-1] or not _has_one_thread():
        return _spawn(path, args, passed)
    pid = os.fork()
    if pid == 0:
        first = 3
        for kept in sorted(passed):
            os.closerange(first, kept)
            first = kept + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        # Whoever asks for a fork server holds its lock: a rank that asks for one of its own would wait for ever.
        forkserver._forkserver.__init__()
        with suppress(SystemExit):
            exec(args[-1])
        os._exit(0)
    return pid


def _import_all() -> None:
    """What a command and its ranks import, sooner or later."""
    sys.path[0] = str(ROOT)
    from suture.cli import COMMANDS
    from suture.launch.host.sandbox_setup import load_the_lazy
    from suture.launch.start.fork_server import IMPORTED

    commands = {f"suture.{module}" for module, _ in COMMANDS.values()}
    for module in (*IMPORTED, *sorted(commands), "suture.__main__", "suture.launch.rank"):
        importlib.import_module(module)
    load_the_lazy()
    assert _has_one_thread(), "a process with threads cannot be forked"


def _has_one_thread() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) == 1


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as own:
        _serve(own)
