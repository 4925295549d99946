"""``suture train``: a run whose ranks are on this machine."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace

import click

from suture.launch.click_options import EPILOG, run_options
from suture.launch.keys import KEY_VARIABLE
from suture.launch.options.options import AskedOptions
from suture.launch.output.run_folder import named_by_time
from suture.launch.output.stopped import run_sentence, saying, sigterm_as_interrupt
from suture.launch.start.start import start


@click.command(epilog=EPILOG)
@run_options
def train(options: AskedOptions) -> None:
    """Train on this machine: starts one server and --clients N clients (default 4), or all in one process.

    With --exchange local the same protocol runs in one process; with --unsplit the joined net is trained, which
    is the oracle that split runs are compared with.
    """
    run_dir = options.run_dir or named_by_time()
    options = replace(options, run_dir=run_dir)
    again = shlex.join(["suture", "train", "--resume", "--run-dir", run_dir])
    from_environment = KEY_VARIABLE in os.environ  # read now: whoever uses the key takes it out
    with (
        saying(lambda stopped: run_sentence(options, run_dir, again, key_from_environment=from_environment)),
        sigterm_as_interrupt(),
    ):
        start(options)
