"""The command line: ``suture train | cuts | predict | export | keygen | bench``, and the rank under torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import click

from launch.config import RunOptions, as_config_error, option_type
from launch.options import run_options, sources_help
from runtime.errors import ConfigError, SutureError

EPILOG = f"\b\nData sources:\n{sources_help()}"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def suture() -> None:
    """Split learning for medical imaging: several hospitals train one network, no image leaves its house."""


@suture.command(epilog=EPILOG)
@run_options
def train(options: RunOptions) -> None:
    """Train on this machine: starts one server and --clients N clients (default 4), or all in one process.

    With --exchange local the same protocol runs in one process; with --unsplit the joined net is trained, which
    is the oracle that split runs are compared with.
    """
    if options.unsplit:
        from launch.unsplit import run_unsplit

        run_unsplit(options)
    elif options.exchange == "local":
        from launch.ranks import run_in_one_process

        run_in_one_process(options)
    else:
        start_ranks(options)


def start_ranks(options: RunOptions) -> None:
    """Starts torchrun's agent here with one server rank and the clients, and waits.

    Raises:
        SystemExit: with the code of the rank that failed first; it has said why.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options.resolved()  # refuse bad options before any process exists
    num_clients = options.clients or 4
    _quiet_elastic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would; each rank sets its own threads
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_clients + 1,
        run_id="suture",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    script = str(Path(__file__).with_name("run.py"))
    try:
        elastic_launch(launch, sys.executable)("-u", script, *to_arguments(options))
    except ChildFailedError as failure:
        _, first = failure.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 1)


def _quiet_elastic() -> None:
    import logging

    # The agent reports a failed rank in a page of its own; the rank has already said why in one line.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)


def to_arguments(options: RunOptions) -> list[str]:
    """The command line that gives ``options``."""
    arguments = []
    for option in fields(options):
        value, flag = getattr(options, option.name), option.name.replace("_", "-")
        if value is None or value == option.default:
            continue
        if option_type(option) is bool:
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


@click.command("launch/run.py", context_settings={"max_content_width": 110}, epilog=EPILOG)
@run_options
def rank(options: RunOptions) -> None:
    """One rank of a run under torchrun: rank 0 is the server, the others are clients."""
    if "RANK" not in os.environ:
        raise ConfigError(
            "launch/run.py is started by torchrun (torchrun --nproc_per_node=5 launch/run.py); "
            "or use 'suture train', which starts torchrun itself"
        )
    if options.unsplit or options.exchange == "local":
        raise ConfigError("--unsplit and --exchange local use one process: start them with 'suture train'")
    from launch.ranks import run_rank

    run_rank(options)


@suture.command()
@click.argument("model")
@click.option("--image-size", type=int, default=224, help="pixels a side [224]")
@click.option("--batch-size", type=int, default=32, help="images a step [32]")
@click.option(
    "--labels", type=str, default=None, metavar="shared|home", help="where labels are [the net's default]"
)
@click.option("--width", type=int, default=None, help="channels of the U-Net's first block")
@click.option("--blocks", is_flag=True, help="also the cuts inside a layer, by name")
def cuts(
    model: str, image_size: int, batch_size: int, labels: str | None, width: int | None, blocks: bool
) -> None:
    """Where MODEL can be cut, and what each cut costs."""
    from launch.tables import print_cuts
    from models.cuts import cut_table

    with as_config_error():
        rows = cut_table(model, image_size, batch_size, labels=labels, width=width, inside_layers=blocks)
    print_cuts(model, image_size, batch_size, rows)


@suture.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Make a hand-off key for the clients; give FILE to every client and not to the server."""
    from runtime.handoff import write_key

    write_key(file)
    click.echo(f"wrote {file}; copy it to every client over a channel you trust, and not to the server")


def main() -> NoReturn:
    """The ``suture`` command."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(_run(suture, lambda message: True))


def run_rank_command() -> NoReturn:
    """``launch/run.py`` under torchrun: the rank that meets an error first says it, once for all."""

    def first(message: str) -> bool:
        from runtime.transport import first_to_say

        return first_to_say(message)

    code = _run(rank, first)
    sys.stdout.flush()
    sys.stderr.flush()
    # RPC's and the loaders' threads are daemons of C++; a clean interpreter exit can wait for them for ever.
    os._exit(code)


def _run(command: click.Command, may_say: Callable[[str], bool]) -> int:
    """Runs a command; a person's mistake ends in one line and a code, a defect in a traceback."""
    try:
        result: Any = command.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SutureError as error:
        if may_say(str(error)):
            click.echo(f"suture: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        if may_say(error.format_message()):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
