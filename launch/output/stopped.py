"""What a person reads whose command was stopped by Ctrl-C or SIGTERM: the command that goes on with the run."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from suture.launch.keys import KEY_VARIABLE
from suture.launch.options.options import AskedOptions
from suture.launch.output.run_folder import holds_run


class StoppedInRound(KeyboardInterrupt):
    """A site was stopped while it took part in a run.

    Attributes:
        round: the last one that it had a turn in; 0 before its first turn.
    """

    def __init__(self, round: int) -> None:
        super().__init__()
        self.round = round


@contextmanager
def saying(sentence: Callable[[KeyboardInterrupt], str]) -> Iterator[None]:
    """Where what is done inside is stopped, says one sentence when all of it is closed, and passes the stop on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        click.echo(f"suture: {sentence(stopped)}", err=True)
        raise


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM stops what is done inside as Ctrl-C does. For the main thread."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_sentence(options: AskedOptions, run_dir: str, again: str, key_from_environment: bool) -> str:
    """What to say of a run that was stopped at its server.

    Args:
        options: the run's.
        run_dir: its folder.
        again: the command that goes on with it.
        key_from_environment: whether the hand-off key was in a variable, which is written down nowhere.
    """
    if not holds_run(Path(run_dir)):
        return "stopped before the run began; nothing of it is kept: give the same command again"
    if options.unsplit or options.checkpoints == "off":
        why = "--unsplit keeps no checkpoints" if options.unsplit else "--checkpoints off kept none"
        return f"stopped; {why} to go on from: begin anew with another --run-dir"
    key = f" (with the same {KEY_VARIABLE})" if key_from_environment else ""
    return f"stopped; the run is in {run_dir}; go on with{key}: {again}"


def site_sentence(stopped: KeyboardInterrupt, command: Sequence[str]) -> str:
    """What to say of a site that was stopped; ``command`` starts it again."""
    round = stopped.round if isinstance(stopped, StoppedInRound) else 0
    where = f"in round {round}" if round else "before its first turn"
    return f"stopped {where}; go on with: {shlex.join(command)}"


def typed_command(run_dir: str, is_named: bool) -> list[str]:
    """This process's own command line, with the run's folder where that was not named."""
    return ["suture", *sys.argv[1:], *([] if is_named else ["--run-dir", run_dir])]


def torchrun_command(run_dir: str) -> str:
    """What resumes a run under torchrun; of several machines each has a command of its own."""
    words = [sys.argv[0], "--resume", "--run-dir", run_dir]
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        return f"each machine's own torchrun options, and {shlex.join(words)}"
    ranks = f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', '1')}"
    return shlex.join(["torchrun", ranks, *words])
