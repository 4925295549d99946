"""Starting the ranks of a run on this machine, as torchrun would, without its page about a rank that failed."""

from __future__ import annotations

import logging
import os
import sys

import click

from suture.launch.host.memory_check import check_memory
from suture.launch.host.network_namespace import why_not_isolated
from suture.launch.keys import KEY_VARIABLE
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import STOPPED
from suture.launch.options.toml import to_arguments
from suture.launch.start import fork_server
from suture.runtime.errors import ConfigError
from suture.runtime.host.private_files import take_variable


def start_ranks(asked: AskedOptions) -> None:
    """Starts torchrun's agent here with one server rank and the clients, and waits.

    Raises:
        SystemExit: with the code of the rank that failed first; it has said why.
        KeyboardInterrupt: this process, or all of them, were told to stop.
    """
    fork_server.begin()
    take_variable(KEY_VARIABLE)  # the ranks inherit it from the fork server
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from suture.runtime.rpc.transport import LOOPBACK_STORE, loopback_store

    _check_isolation(asked.isolate)
    options = asked.resolved()
    check_memory(options, forked=True)  # refuse what cannot work before any rank exists
    _quiet_elastic()
    # The agent would open a store for its ranks on every interface; this one only this machine reaches.
    store = loopback_store()
    meeting = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", LOOPBACK_STORE: str(store.port)}
    os.environ |= meeting
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=options.clients + 1,
        run_id="suture",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{store.port}",
        rdzv_configs={"is_host": "false"},
        max_restarts=0,
        monitor_interval=0.2,
        start_method=fork_server.START_METHOD,
    )
    try:
        elastic_launch(launch, fork_server.play)(to_arguments(asked), meeting)
    except ChildFailedError as failure:
        _, first = failure.get_first_failure()
        if first.exitcode == STOPPED:  # Ctrl-C reaches the ranks as well, and one of them was first
            raise KeyboardInterrupt from None
        sys.exit(first.exitcode if first.exitcode > 0 else 1)
    except SignalException:  # the agent has ended the ranks
        raise KeyboardInterrupt from None


def _check_isolation(wanted: str) -> None:
    """Says what came of ``--isolate``.

    Raises:
        ConfigError: it is on, and the ranks' network is not their own.
    """
    why_not = why_not_isolated()
    if why_not == "":
        click.echo("the ranks have a network of their own: no other user reaches their ports", err=True)
        return
    if wanted == "off":
        return
    if wanted == "on":
        reason = why_not or "this command was not started as suture train"
        raise ConfigError(
            f"isolate is on, but the ranks get no network of their own ({reason}); use --isolate auto"
        )
    if why_not:
        click.echo(
            f"suture: the ranks get no network of their own ({why_not}): other users of this machine reach their "
            "ports; --isolate off says nothing of it",
            err=True,
        )


def _quiet_elastic() -> None:
    # The agent reports a failed rank in a page of its own; the rank has already said why in one line.
    for name in ("torch.distributed", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
