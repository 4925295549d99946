"""The command line of the benchmarks: ``suture bench NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from suture.launch.click_options import run_options
from suture.launch.options.options import AskedOptions


@click.group()
def bench() -> None:
    """Measure, and write a page of docs/ or its section."""


def _sizes(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a benchmark of docs/benchmarks.md the options that all of them have."""
    for option in reversed(
        (
            click.option(
                "--quick", is_flag=True, help="seconds that show that it works, and measure nothing"
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help="where the section goes [docs; with --quick it is printed]",
            ),
        )
    ):
        command = option(command)
    return command


@bench.command("train")
@click.option("--only", metavar="TEXT", help="only rows whose name holds TEXT, such as resnet34-128px-cut3")
@click.option("--full", is_flag=True, help="every size, cut and width: 20 minutes, into docs/benchmarks-full")
@_sizes
def bench_train(**asked: Any) -> None:
    """Time of a split step against an unsplit one, bytes a step, memory, and what idle ranks use.

    With --only nothing is written unless --out is given: the page in docs/ is of a whole benchmark.
    """
    _run("train", asked)


@bench.command("clients")
@_sizes
def bench_clients(**asked: Any) -> None:
    """Images a second of 1 to 32 clients in each schedule, over the same net unsplit; memory, the server's seconds."""
    _run("clients", asked)


@bench.command("line")
@click.option(
    "--data",
    metavar="SPEC",
    help="images of the runs for the metric [kaggle-dr:$SUTURE_DATA/idrid, else drawn ones]",
)
@_sizes
def bench_line(**asked: Any) -> None:
    """Step times over a line of 1000, 100 and 20 Mbit/s, in each exchange, wire format and overlap. Needs root."""
    _run("line", asked)


@bench.command("sites")
@_sizes
def bench_sites(**asked: Any) -> None:
    """What runs between sites, gRPC over TLS, beside torch RPC: steps, hand-offs, joining, 32 sites. Needs root."""
    _run("sites", asked)


def _run(name: str, asked: Mapping[str, Any]) -> None:
    from suture.studies.bench.run import run_section

    run_section(name, **asked)


@bench.command("all")
@_sizes
def bench_all(quick: bool, out: Path | None) -> None:
    """All four of train, clients, line and sites; an estimate is printed first."""
    from suture.studies.bench.run import run_all

    run_all(quick=quick, out=out)


@bench.command("attacks")
@click.option("--steps", "num_steps", type=int, default=12, help="steps timed a row, at least 10 [12]")
@run_options
def bench_attacks(options: AskedOptions, num_steps: int) -> None:
    """Step times of every attack, defence and detector beside undefended training.

    Without options: drawn photographs at 64 px, ResNet-18 cut at layer1.
    """
    from suture.studies.bench.attacks import run_command

    run_command(options, num_steps)


@bench.command("security")
@click.option("--repeats", type=int, default=30, help="measurements of each, at least 10 [30]")
@click.option("--threads", type=int, default=None, help="computing threads [all cores]")
def bench_security(repeats: int, threads: int | None) -> None:
    """What the codec and the checks add to a step, and seconds of a sealed hand-off."""
    from suture.studies.bench.security import run_command

    run_command(repeats, threads)


@bench.command("warnings")
@click.option("--runs", "num_runs", type=int, default=30, help="runs of each kind, at least 2 [30]")
@click.option("--flipped", type=float, default=0.4, help="share of one site's labels that are wrong [0.4]")
@run_options
def bench_warnings(options: AskedOptions, num_runs: int, flipped: float) -> None:
    """How often a site is named as unlike the others: on even data, and where one site's labels are partly wrong.

    Without options: drawn photographs at 32 px, three sites of 256 images, eight rounds, seeds from --seed on.
    """
    from suture.studies.bench.warnings import run_command

    run_command(options, num_runs, flipped)


@bench.command("detectors")
@click.option("--steps", "num_steps", type=int, default=240, help="batches a run [240]")
@click.option("--honest", type=int, default=20, help="honest runs [20]")
@click.option("--hostile", type=int, default=3, help="runs under FSHA [3]")
@run_options
def bench_detectors(options: AskedOptions, num_steps: int, honest: int, hostile: int) -> None:
    """Alarms of every detector over honest runs and runs under FSHA, seeds from --seed on; about ten minutes.

    Without options: drawn photographs at 32 px, ResNet-18 cut at layer1.
    """
    from suture.studies.bench.detectors import run_command

    run_command(options, num_steps, honest, hostile)
