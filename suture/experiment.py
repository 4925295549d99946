"""``suture experiment`` and ``suture report`` on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from suture.runtime.errors import ConfigError


@click.command()
@click.argument("name")
@click.option("--scale", default="laptop", metavar="smoke|laptop|full", help="sizes [laptop]")
@click.option(
    "--data",
    multiple=True,
    metavar="[ROLE=]SPEC",
    help="a set, as for train; ROLE photographs, lungs or digits where the SPEC does not say it; may be repeated "
    "[sets under $SUTURE_DATA]",
)
@click.option("--seeds", "num_seeds", type=int, default=None, help="runs of every arm [3]")
@click.option("--seed", type=int, default=0, help="the first; further ones count up [0]")
@click.option("--budget", type=float, metavar="MINUTES", help="what scale laptop is to fit on two cores [90]")
@click.option(
    "--exchange", default="local", metavar="local|fused", help="fused: real processes for every run [local]"
)
@click.option("--device", default="cpu", metavar="auto|cpu|cuda", help="where runs compute [cpu]")
@click.option("--jobs", "slots", type=int, default=None, help="runs at a time, one thread each [the cores]")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="repeat a saved config.toml")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="[experiments/NAME; all: experiments]"
)
def experiment(slots: int | None, **asked: Any) -> None:
    """Runs that together answer one question; stopped, the same command goes on where it was.

    NAME: cut-layer, clients, unet-cut, fsha, adra, split-vs-central, or all. Writes table.csv, table.md and figures/
    beside the runs; one run of each is repeated with real processes, and its weights must come out equal.
    """
    from suture.studies.experiments.engine.plan import Request
    from suture.studies.experiments.engine.run import run_experiments

    if slots is not None and slots < 1:
        raise ConfigError(f"jobs must be at least 1, got {slots}")
    for folder in run_experiments(Request(slots=slots or os.cpu_count() or 1, **asked)):
        click.echo((folder / "table.md").read_text(encoding="utf-8"))
        click.echo(f"Everything is in {folder}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("experiments"))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="where to write [FOLDER/report; of a run FOLDER]",
)
@click.option(
    "--foreword", type=click.Path(path_type=Path), metavar="FILE", help="Markdown that stands first"
)
def report(folder: Path, out: Path | None, foreword: Path | None) -> None:
    """One self-contained HTML page: of all experiments in FOLDER [experiments], or of the run in FOLDER.

    Of experiments: tables, figures, commands, seeds, machine and published figures beside ours; tables, figures and
    results to compute with stand beside it. Of a run, which may still go on: report.html, which a run writes by itself
    every half minute and when it ends; a site's RUN/clients/NAME has its own.
    """
    from suture.launch.output.report import pages_of, write_report

    pages = pages_of(folder)
    if pages:
        if foreword is not None:
            raise ConfigError("foreword is for a report on experiments: leave it out for that of a run")
        for place, view in pages[: 1 if out else None]:
            click.echo(f"report.html: open {write_report(place, view, out or place)}")
        return
    from suture.studies.experiments.report import write_report as write_study

    place = out or folder / "report"
    names = write_study(folder, place, foreword)
    click.echo(f"{', '.join(names)}: open {place / 'index.html'}")
