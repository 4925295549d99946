"""A small supervisor: runs one member of a run as a child process and starts it again when it was killed.

A process that has lost its membership, or died, cannot come back: RPC wants a fresh process with a fresh name and
rank. So each site runs two: this one, which does nothing but watch, and the member. A person's mistake ends both.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import click

from runtime.errors import ConfigError, PeerLostError, SeatLostError

SUPERVISOR = "SUTURE_SUPERVISOR"
_PR_SET_PDEATHSIG = 1
_LOST = (PeerLostError.exit_code, SeatLostError.exit_code)


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


class _Stopped(BaseException):
    """The supervisor was told to stop by a signal."""

    def __init__(self, number: int) -> None:
        self.number = number


def supervise(command: Sequence[str], config: SupervisorConfig | None = None) -> int:
    """Runs ``command`` until it has ended for good.

    Returns:
        Its exit code; 128 and the signal's number where a signal ended it for the last time, or told us to stop.
    """
    config = config or SupervisorConfig()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _run_again_and_again(command, config)
    except _Stopped as stopped:
        return 128 + stopped.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_again_and_again(command: Sequence[str], config: SupervisorConfig) -> int:
    failures = 0
    while True:
        began = time.monotonic()
        code = _run_once(command, config)
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


def _run_once(command: Sequence[str], config: SupervisorConfig) -> int:
    # In a session of its own a member gets no Ctrl-C from the terminal: what it is told, it is told by us.
    child = subprocess.Popen(command, env=os.environ | {SUPERVISOR: str(os.getpid())}, start_new_session=True)
    try:
        return child.wait()
    except _Stopped:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(config.farewell)
        raise
    finally:
        with suppress(ProcessLookupError):  # it and all that it started
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def die_with_supervisor() -> None:
    """In a member: asks the system to kill this process when its supervisor is gone, however that ended."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGKILL)
