"""``suture predict`` and ``suture export``: what a trained model is for."""

from __future__ import annotations

from pathlib import Path

import click

from suture.launch.deploy.export import export as write
from suture.launch.deploy.predict import SOME_UNREADABLE, predict_folder
from suture.launch.deploy.trained import load_trained


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="where results go")
@click.option(
    "--which", default="best", type=click.Choice(["best", "last"]), help="round of the model [best]"
)
@click.option("--batch-size", type=int, default=16, help="images at a time [16]")
@click.option("--overwrite", is_flag=True, help="replace DIR/predictions.csv, DIR/left_out.csv and DIR/masks")
@click.option(
    "--frame", type=int, metavar="N", help="which frame of DICOM files that hold several, as in training"
)
def predict(
    run_or_model: Path,
    folder: Path,
    out: Path,
    which: str,
    batch_size: int,
    overwrite: bool,
    frame: int | None,
) -> int:
    """Classify or segment every image below FOLDER with the model of a run.

    RUN_OR_MODEL is a run folder or a client's model.pt. DIR/predictions.csv gets a line an image; for
    segmentation DIR/masks gets a mask an image, 0 or 255, at the image's own size. An image that cannot be read
    is named and left out, and the exit code is then 3.
    """
    model = load_trained(run_or_model, which)
    outcome = predict_folder(model, folder, out, batch_size=batch_size, overwrite=overwrite, frame=frame)
    for problem in outcome.problems:
        click.echo(f"suture: left out: {problem}", err=True)
    for note in outcome.notes:
        click.echo(f"suture: {note}", err=True)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcome.predicted.items())) or "no finding"
    click.echo(f"{counts}; {len(outcome.problems)} left out; see {out / 'predictions.csv'}")
    return SOME_UNREADABLE if outcome.problems else 0


@click.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, metavar="torchscript|onnx", help="onnx needs suture[onnx]")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="where to write")
@click.option(
    "--which", default="best", type=click.Choice(["best", "last"]), help="round of the model [best]"
)
@click.option("--overwrite", is_flag=True, help="replace FILE")
def export(run_or_model: Path, form: str, out: Path, which: str, overwrite: bool) -> None:
    """Write the whole net of a run as one TorchScript or ONNX file.

    Input: images in [0, 1], (N, channels, size, size), padded to a square with black; the normalisation is
    inside. Output: probabilities, one a class (classification) or one a pixel (segmentation). The file is run
    against torch before it is kept. torch has deprecated TorchScript: prefer ONNX for new work.
    """
    verified = write(load_trained(run_or_model, which), form, out, overwrite=overwrite)
    click.echo(f"wrote {out}; {verified}")
