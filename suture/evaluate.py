"""``suture evaluate`` on the command line."""

from __future__ import annotations

from pathlib import Path

import click

from suture.launch.evaluate.evaluate import evaluate as write
from suture.launch.evaluate.images import Reading


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="where results go")
@click.option(
    "--which", default="best", type=click.Choice(["best", "last"]), help="round of the model [best]"
)
@click.option(
    "--sensitivity",
    type=float,
    metavar="SHARE",
    help="choose the threshold of the second of two classes for this sensitivity [by Youden's index]",
)
@click.option(
    "--columns", metavar="image=NAME,label=NAME,...", help="as for train, for DATA that are not the run's"
)
@click.option("--structure", metavar="N,N", help="as for train, for DATA that are not the run's")
@click.option("--frame", type=int, metavar="N", help="as for train, for DATA that are not the run's")
def evaluate(
    run_or_model: Path,
    data: str,
    out: Path,
    which: str,
    sensitivity: float | None,
    columns: str | None,
    structure: str | None,
    frame: int | None,
) -> None:
    """Evaluate a trained model on images: curves, calibration, confusion, scores by site and class, Grad-CAM.

    RUN_OR_MODEL is a run folder or a client's model.pt, DATA a SPEC as for train. Of a run's own data the images are
    those that it did not train on. Writes DIR/evaluation.html, evaluation.json, predictions.csv and figures/.
    """
    reading = Reading(columns, structure, frame)
    click.echo(
        f"open {write(run_or_model, data, out, which=which, sensitivity=sensitivity, reading=reading)}"
    )
