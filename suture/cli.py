"""The command line: ``suture train | serve | join | ...``, and the rank under torchrun."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from suture.bench import bench
from suture.check import check
from suture.cuts import cuts
from suture.evaluate import evaluate
from suture.experiment import experiment, report
from suture.kits import provision, roster
from suture.launch.click_options import EPILOG, run_options
from suture.launch.keys import KEY_VARIABLE
from suture.launch.options.options import AskedOptions
from suture.launch.options.outcome import outcome
from suture.launch.output.run_folder import named_by_time
from suture.launch.output.stopped import run_sentence, saying, sigterm_as_interrupt
from suture.requests import install, request, revoke, sign
from suture.sites import join, serve
from suture.wishes import leave, pause


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def suture() -> None:
    """Split learning for medical imaging: several hospitals train one network, no image leaves its house."""


suture.add_command(cuts)
suture.add_command(bench)
suture.add_command(experiment)
suture.add_command(report)
suture.add_command(evaluate)


@suture.command(epilog=EPILOG)
@run_options
def train(options: AskedOptions) -> None:
    """Train on this machine: starts one server and --clients N clients (default 4), or all in one process.

    With --exchange local the same protocol runs in one process; with --unsplit the joined net is trained, which
    is the oracle that split runs are compared with.
    """
    from suture.launch.start.start import start

    run_dir = options.run_dir or named_by_time()
    options = replace(options, run_dir=run_dir)
    again = shlex.join(["suture", "train", "--resume", "--run-dir", run_dir])
    from_environment = KEY_VARIABLE in os.environ  # read now: whoever uses the key takes it out
    with (
        saying(lambda stopped: run_sentence(options, run_dir, again, key_from_environment=from_environment)),
        sigterm_as_interrupt(),
    ):
        start(options)


@suture.command()
@click.argument("run_or_model", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="where results go")
@click.option(
    "--which", default="best", type=click.Choice(["best", "last"]), help="round of the model [best]"
)
@click.option("--batch-size", type=int, default=16, help="images at a time [16]")
@click.option("--overwrite", is_flag=True, help="replace DIR/predictions.csv, DIR/left_out.csv and DIR/masks")
def predict(run_or_model: Path, folder: Path, out: Path, which: str, batch_size: int, overwrite: bool) -> int:
    """Classify or segment every image below FOLDER with the model of a run.

    RUN_OR_MODEL is a run folder or a client's model.pt. DIR/predictions.csv gets a line an image; for
    segmentation DIR/masks gets a mask an image, 0 or 255, at the image's own size. An image that cannot be read
    is named and left out, and the exit code is then 3.
    """
    from suture.launch.deploy.predict import SOME_UNREADABLE, predict_folder
    from suture.launch.deploy.trained import load_trained

    model = load_trained(run_or_model, which)
    outcome = predict_folder(model, folder, out, batch_size=batch_size, overwrite=overwrite)
    for problem in outcome.problems:
        click.echo(f"suture: left out: {problem}", err=True)
    for note in outcome.notes:
        click.echo(f"suture: {note}", err=True)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcome.predicted.items()))
    click.echo(f"{counts}; {len(outcome.problems)} left out; see {out / 'predictions.csv'}")
    return SOME_UNREADABLE if outcome.problems else 0


@suture.command()
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
    from suture.launch.deploy.export import export as write
    from suture.launch.deploy.trained import load_trained

    verified = write(load_trained(run_or_model, which), form, out, overwrite=overwrite)
    click.echo(f"wrote {out}; {verified}")


@suture.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--attack", "spec", required=True, metavar="SPEC", help="a passive attack; see 'suture train --help'"
)
@click.option("--handoff-key", metavar="FILE", help="the clients' key [the one in RUN]")
@click.option("--name", metavar="NAME", help="folder under RUN/attacks [from SPEC]")
def attack(run: Path, spec: str, handoff_key: str | None, name: str | None) -> None:
    """Attack what crossed the wire in RUN, recorded with --recording, and judge what came of it."""
    from suture.launch.lab.attack_recording import attack_recording
    from suture.tables import print_verdict

    print_verdict(attack_recording(run, spec, handoff_key=handoff_key, name=name))


@suture.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--handoff-key", metavar="FILE", help="the clients' key [the one in RUN]")
@click.option("--name", metavar="NAME", help="an attack under RUN/attacks [the live one]")
def judge(run: Path, handoff_key: str | None, name: str | None) -> None:
    """Judge the attack on RUN again: rebuild the clients' images and score what the attack made of them."""
    from suture.launch.lab.judging import judge_run
    from suture.tables import print_verdict

    print_verdict(judge_run(run, handoff_key=handoff_key, folder=run / "attacks" / name if name else None))


@suture.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Make a hand-off key for the clients; give FILE to every client and not to the server."""
    from suture.runtime.state.handoff import write_key

    write_key(file)
    click.echo(f"wrote {file}; copy it to every client over a channel you trust, and not to the server")


@suture.command(epilog=EPILOG)
@click.option("--cuts", default="1,3", metavar="N,N", help="cut layers [1,3]")
@click.option(
    "--defences",
    default="none,dcor,proxy,noise",
    metavar="NAMES",
    help="a bare name is audited at up to five strengths, a SPEC as it stands [none,dcor,proxy,noise]",
)
@click.option(
    "--seeds", "num_seeds", type=int, default=3, help="runs of each point, seeds from --seed on [3]"
)
@click.option("--aux-images", type=int, default=500, help="images that the attacker owns [500]")
@click.option(
    "--effort", type=int, default=1, help="times the budget of passes for the attackers' decoders [1]"
)
@click.option(
    "--budget", type=float, metavar="MINUTES", help="as many strengths as fit; ends when it is used up"
)
@click.option(
    "--check", is_flag=True, help="also train one point with real processes and compare the weights"
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="where it goes [audits/DATA-MODEL]"
)
@run_options
def audit(
    options: AskedOptions,
    cuts: str,
    defences: str,
    num_seeds: int,
    aux_images: int,
    effort: int,
    budget: float | None,
    check: bool,
    out: Path | None,
) -> None:
    """What would a hospital leak if it joined? Trains every cut with every defence, attacks each run twice.

    Writes audit.csv, audit.md and frontier.png: the task's metric against SSIM and re-identification. Stopped, the
    same command goes on where it stopped.
    """
    from suture.studies.audit.plan import parse_cuts, parse_defences
    from suture.studies.audit.point import Means
    from suture.studies.audit.run import AuditConfig, audit_options, run_audit

    config = AuditConfig(
        cuts=parse_cuts(cuts),
        families=parse_defences(defences),
        num_seeds=num_seeds,
        means=Means(aux_images=aux_images, effort=effort),
        budget=budget,
        check=check,
    )
    data = options.data.partition(":")[0]
    run_audit(config, options, out or Path("audits") / f"{data}-{audit_options(options).model or 'default'}")


def main() -> NoReturn:
    """The ``suture`` command."""
    sys.exit(outcome(lambda: suture.main(standalone_mode=False)))


suture.add_command(provision)
suture.add_command(roster)
suture.add_command(request)
suture.add_command(sign)
suture.add_command(install)
suture.add_command(revoke)
suture.add_command(serve)
suture.add_command(join)
suture.add_command(check)
suture.add_command(leave)
suture.add_command(pause)
