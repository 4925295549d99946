"""A small supervisor: runs one member of a run as a child process and starts it again when it was killed.

A process that has lost its membership, or died, cannot come back: RPC wants a fresh process with a fresh name and
rank. So each site runs two: this one, which does nothing but watch, and the member. A person's mistake ends both.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from runtime.errors import ConfigError, PeerLostError, SeatLostError

SUPERVISOR = "SUTURE_SUPERVISOR"
_PR_SET_PDEATHSIG = 1
_LOST = (PeerLostError.exit_code, SeatLostError.exit_code)
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """When a member is started again.

    Attributes:
        restarts: how often, without a steady spell in between, before giving up.
        first_wait: seconds before the first restart; doubled each time.
        longest_wait: seconds that it is doubled to.
        steady: a member that ran so many seconds counts as healthy, and the count begins anew.
        farewell: seconds that a member is given to end when the supervisor is told to stop.
    """

    restarts: int = 10
    first_wait: float = 0.25
    longest_wait: float = 60.0
    steady: float = 300.0
    farewell: float = 5.0

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise ConfigError(f"restarts must be at least 0, got {self.restarts}")


@dataclass(frozen=True, kw_only=True)
class MemberStart:
    """The two ways to start one member.

    Attributes:
        run: does the member's work and ends the process. Called in a fork of this one, where all that it needs has
            been imported already: a fresh Python takes seconds to import torch, while the others wait.
        command: the same as a command line, for a supervisor that has more than one thread. Of several threads a fork
            has only one, and the locks of all.
    """

    run: Callable[[], NoReturn]
    command: Sequence[str]


class _Stopped(BaseException):
    """The supervisor was told to stop by a signal."""

    def __init__(self, number: int) -> None:
        self.number = number


def supervise(member: MemberStart, config: SupervisorConfig | None = None) -> int:
    """Runs ``member`` until it has ended for good.

    Returns:
        Its exit code; 128 and the signal's number where a signal ended it for the last time, or told us to stop.
    """
    config = config or SupervisorConfig()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    # Inherited as "ignore", as some parents leave it, the system would tell nobody how a member ended.
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return _run_again_and_again(member, config)
    except _Stopped as stopped:
        return 128 + stopped.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_again_and_again(member: MemberStart, config: SupervisorConfig) -> int:
    failures = 0
    while True:
        began = time.monotonic()
        code = _run_once(member, config)
        if code >= 0 and code not in _LOST:
            return code
        if time.monotonic() - began >= config.steady:
            failures = 0
        failures += 1
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "lost the others"
        if failures > config.restarts:
            click.echo(f"suture: it {how} again, after {config.restarts} restarts; giving up", err=True)
            return code if code >= 0 else 128 - code
        wait = min(config.first_wait * 2 ** (failures - 1), config.longest_wait)
        click.echo(
            f"suture: it {how}; starting it again in {wait:g} s ({failures} of {config.restarts})", err=True
        )
        time.sleep(wait)


def _run_once(member: MemberStart, config: SupervisorConfig) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # until it is known whom to tell
    pid = _start(member)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except _Stopped:
        os.kill(pid, signal.SIGTERM)
        _wait_for_end(pid, config.farewell)
        raise
    finally:
        # Not reaped so far, it has its number still, and nobody else can have it.
        with suppress(ProcessLookupError):  # it and all that it started
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)  # no group yet: told to stop while it was starting
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _start(member: MemberStart) -> int:
    """Starts it in a session of its own: it gets no Ctrl-C from the terminal, what it is told, it is told by us.

    Returns:
        Its process id.
    """
    told = {SUPERVISOR: str(os.getpid())}
    if num_threads() > 1:
        return os.posix_spawn(
            member.command[0], list(member.command), os.environ | told, setsid=True, setsigmask=()
        )
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        os.environ.update(told)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        member.run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # never back into the supervisor's code


def num_threads() -> int:
    """Threads of this process, C++ ones among them, once those of Python that are ending have ended."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(0.2)
    return len(list(Path("/proc/self/task").iterdir()))


def _wait_for_end(pid: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return
        time.sleep(0.02)


def die_with_supervisor() -> None:
    """In a member: asks the system to kill this process when its supervisor is gone, however that ended."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGKILL)
