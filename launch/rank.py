"""One rank of a run, from its options to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import click
import torch

from suture.launch.click_options import EPILOG, run_options
from suture.launch.host.cores import ranks_at_once
from suture.launch.host.memory_check import check_memory
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import exit_as_rank, outcome
from suture.launch.roles.client import join
from suture.launch.roles.server import serve
from suture.runtime.errors import ConfigError
from suture.runtime.rpc import transport
from suture.runtime.rpc.transport import Transport, TransportConfig


@click.command("launch/run.py", context_settings={"max_content_width": 110}, epilog=EPILOG)
@run_options
def rank(options: AskedOptions) -> None:
    """One rank of a run under torchrun: rank 0 is the server, the others are clients."""
    if "RANK" not in os.environ:
        raise ConfigError(
            "launch/run.py is started by torchrun (torchrun --nproc_per_node=5 launch/run.py); "
            "or use 'suture train', which starts torchrun itself"
        )
    if options.unsplit or options.exchange == "local":
        raise ConfigError("--unsplit and --exchange local use one process: start them with 'suture train'")
    from suture.launch.host.network_namespace import why_not_isolated

    if options.isolate == "on" and why_not_isolated() is None:
        raise ConfigError(
            "isolate is for suture train, which makes the ranks' network before it starts them: leave it out, and keep "
            "others from the ports of this machine"
        )
    run_rank(options)


def run_rank_command() -> NoReturn:
    """``launch/run.py`` under torchrun."""
    exit_as_rank(rank_outcome(sys.argv[1:]))


def rank_outcome(arguments: Sequence[str]) -> int:
    """One rank, from its options to its exit code; the rank that meets an error first says it, once for all."""

    def first(message: str) -> bool:
        from suture.runtime.rpc.transport import first_to_say

        return first_to_say(message)

    return outcome(lambda: rank.main(list(arguments), standalone_mode=False), first)


def run_rank(asked: AskedOptions) -> None:
    """One rank under torchrun: rank 0 serves, the others are clients.

    Raises:
        SutureError: the run could not start, or stopped.
    """
    world = int(os.environ["WORLD_SIZE"])
    if world < 2:
        raise ConfigError(
            f"a run needs one server and at least one client, got {world} rank; "
            "use torchrun --nproc_per_node=2 or more"
        )
    if asked.clients is not None and asked.clients != world - 1:
        raise ConfigError(
            f"clients is {asked.clients}, but torchrun started {world} ranks (one server and {world - 1} "
            f"clients, and a run that is resumed keeps its number); leave --clients out or use "
            f"--nproc_per_node={asked.clients + 1}"
        )
    # An attack may pre-train before it lets the clients in; in a lab they wait for it.
    timeout = max(asked.lease, 900.0) if asked.attack_spec() is not None else asked.lease
    config = TransportConfig.from_environment(asked.interface, timeout)
    options = replace(asked, clients=world - 1).resolved()
    if config.one_host and transport.LOOPBACK_STORE not in os.environ:  # `suture train` has checked
        check_memory(options)
    # Threads that are older than the sandbox stay outside it: until it is closed there is only this one.
    torch.set_num_threads(1)
    serves, here = config.rank == transport.SERVER_RANK, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    sharing = ranks_at_once(options, serves=serves, here=here)
    line = Transport(config)
    try:
        (serve if serves else join)(options, line, sharing)
    finally:
        line.leave()
