"""``suture serve`` and ``suture join``: each site starts its own, whenever, and its supervisor keeps it running."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import click
import torch

from launch.address import parse_address
from launch.config import RunOptions, required
from launch.enclosure import load_the_lazy
from launch.options import EPILOG, run_options
from launch.outcome import exit_as_rank, outcome
from launch.sites import JoinConfig, ServeConfig, check_options, join_site, serve_site
from launch.supervisor import MemberStart, SupervisorConfig, die_with_supervisor, supervise
from launch.written import to_arguments
from runtime.errors import ConfigError
from runtime.members import OpenDoor


def _supervision(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--supervise/--no-supervise",
        "supervised",
        default=True,
        help="start it again when it was killed [on]",
    )(command)
    return click.option("--restarts", type=int, default=10, help="how often in a row [10]")(command)


@click.command(epilog=EPILOG)
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:29500", help="address [127.0.0.1:29500]")
@click.option(
    "--min-clients", type=int, default=None, help="begin with so many when --grace is over [--clients]"
)
@click.option("--grace", type=float, default=60.0, help="seconds to wait for sites that are not there [60]")
@_supervision
@run_options
def serve(
    options: RunOptions, listen: str, min_clients: int | None, grace: float, supervised: bool, restarts: int
) -> int:
    """Be the server of a run that sites join: begins when --clients of them are in.

    Sites may come late and come back: they train from the next round on. After a crash, or started again with the
    same --run-dir, it goes on from the last turn that counted.
    """
    check_options(options, "serve")
    options.resolved()
    OpenDoor(least=1 if min_clients is None else min_clients, grace=grace)
    if min_clients is not None and min_clients > required(options.clients):
        raise ConfigError(f"min_clients must lie in 1..{options.clients} (--clients), got {min_clients}")
    parse_address(listen)
    config = ServeConfig(listen=listen, min_clients=min_clients, grace=grace)
    options = replace(options, run_dir=options.run_dir or f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}")

    def be_server() -> NoReturn:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _be_member(lambda: serve_site(options, config))

    if not supervised:
        be_server()
    own = ["--listen", listen, "--grace", str(grace)]
    own += [] if min_clients is None else ["--min-clients", str(min_clients)]
    return _supervised(be_server, ["serve", *own, *to_arguments(options)], restarts)


@click.command(epilog=EPILOG)
@click.argument("server", metavar="HOST:PORT")
@click.option("--name", required=True, help="this site's name: letters, digits, underscores")
@click.option("--patience", type=float, default=600.0, help="seconds to look for a server [600]")
@_supervision
@run_options
def join(
    options: RunOptions, server: str, name: str, patience: float, supervised: bool, restarts: int
) -> int:
    """Join the run of the server at HOST:PORT, with this site's own --data and the sites' --handoff-key.

    Options that must agree are compared when it joins. All of --data is this site's: nothing is shared out.
    """
    check_options(options, "join")
    config = JoinConfig(server=server, name=name, patience=patience)
    replace(options, clients=1).resolved()
    folder = options.run_dir or f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    options = replace(options, run_dir=folder)

    def be_site() -> NoReturn:
        _be_member(lambda: join_site(options, config))

    if not supervised:
        be_site()
    own = [server, "--name", name, "--patience", str(patience)]
    return _supervised(be_site, ["join", *own, *to_arguments(options)], restarts)


def _be_member(work: Callable[[], None]) -> NoReturn:
    die_with_supervisor()
    exit_as_rank(outcome(work))


def _supervised(run: Callable[[], NoReturn], arguments: Sequence[str], restarts: int) -> int:
    torch.set_num_threads(1)  # a supervisor with more threads than one cannot fork its member
    load_the_lazy()
    command = [sys.executable, "-m", "launch", *arguments, "--no-supervise"]
    return supervise(MemberStart(run=run, command=command), SupervisorConfig(restarts=restarts))
