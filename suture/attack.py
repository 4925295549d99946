"""``suture attack``, ``suture judge`` and ``suture audit``: what leaks."""

from __future__ import annotations

from pathlib import Path

import click

from suture.launch.click_options import EPILOG, run_options
from suture.launch.lab.attack_recording import attack_recording
from suture.launch.lab.judging import judge_run
from suture.launch.options.options import AskedOptions
from suture.studies.audit.plan import parse_cuts, parse_defences
from suture.studies.audit.point import Means
from suture.studies.audit.run import AuditConfig, audit_options, run_audit
from suture.tables import print_verdict


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--attack", "spec", required=True, metavar="SPEC", help="a passive attack; see 'suture train --help'"
)
@click.option("--handoff-key", metavar="FILE", help="the clients' key [the one in RUN]")
@click.option("--name", metavar="NAME", help="folder under RUN/attacks [from SPEC]")
def attack(run: Path, spec: str, handoff_key: str | None, name: str | None) -> None:
    """Attack what crossed the wire in RUN, recorded with --recording, and judge what came of it."""
    print_verdict(attack_recording(run, spec, handoff_key=handoff_key, name=name))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--handoff-key", metavar="FILE", help="the clients' key [the one in RUN]")
@click.option("--name", metavar="NAME", help="an attack under RUN/attacks [the live one]")
def judge(run: Path, handoff_key: str | None, name: str | None) -> None:
    """Judge the attack on RUN again: rebuild the clients' images and score what the attack made of them."""
    print_verdict(judge_run(run, handoff_key=handoff_key, folder=run / "attacks" / name if name else None))


@click.command(epilog=EPILOG)
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
