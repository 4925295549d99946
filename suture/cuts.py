"""``suture cuts``: where a net can be cut, what each cut costs, and how long its step would take over a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch
from rich.console import Console

from suture.launch.options.model import as_config_error
from suture.launch.options.options import AskedOptions
from suture.models.cuts import CutRow, cut_table
from suture.runtime.errors import ConfigError
from suture.studies.cut_advice import Line, advise, notes
from suture.tables import print_advice, print_cuts


@click.command()
@click.argument("model")
@click.option("--image-size", type=int, default=224, help="pixels a side [224]")
@click.option("--batch-size", type=int, default=32, help="images a step [32]")
@click.option(
    "--labels", type=str, default=None, metavar="shared|home", help="where labels are [the net's default]"
)
@click.option("--width", type=int, default=None, help="channels of the U-Net's first block")
@click.option("--blocks", is_flag=True, help="also the cuts inside a layer, by name")
@click.option(
    "--advise", "wants_advice", is_flag=True, help="time every cut here and predict its step over a line"
)
@click.option("--bandwidth", type=float, metavar="MBIT", help="of the line, in Mbit/s")
@click.option("--latency", type=float, metavar="MS", help="of the line, in milliseconds one way")
@click.option("--client-speed", type=float, metavar="FACTOR", help="the client's over this machine's [1]")
@click.option("--exchange", metavar="autograd|fused", help=f"how a step crosses [{AskedOptions.exchange}]")
def cuts(
    model: str,
    image_size: int,
    batch_size: int,
    labels: str | None,
    width: int | None,
    blocks: bool,
    wants_advice: bool,
    **line: Any,
) -> None:
    """Where MODEL can be cut, and what each cut costs.

    With --advise, --bandwidth and --latency: how long a training step would take, with the default optimizer.
    """
    with as_config_error():
        rows = cut_table(model, image_size, batch_size, labels=labels, width=width, inside_layers=blocks)
    if wants_advice:
        _advise(model, rows, line, image_size=image_size, batch_size=batch_size, labels=labels, width=width)
    elif any(value is not None for value in line.values()):
        raise ConfigError("bandwidth, latency, client-speed and exchange go with --advise; add it")
    else:
        print_cuts(model, image_size, batch_size, rows)


def _advise(
    model: str,
    rows: Sequence[CutRow],
    given: Mapping[str, Any],
    *,
    image_size: int,
    batch_size: int,
    labels: str | None,
    width: int | None,
) -> None:
    """Prints the advice for every cut; ``given`` are `Line`'s fields, None where nothing was said."""
    if given["bandwidth"] is None or given["latency"] is None:
        raise ConfigError("advise needs the line: give --bandwidth MBIT and --latency MS")
    line = Line(**{"exchange": AskedOptions.exchange} | {k: v for k, v in given.items() if v is not None})
    with Console(stderr=True).status(f"timing {len(rows)} cuts"):
        found = advise(
            model, rows, line, image_size=image_size, batch_size=batch_size, labels=labels, width=width
        )
    title = (
        f"{model} at {image_size} px, batch {batch_size}: milliseconds a step; {line.bandwidth:g} Mbit/s, "
        f"{line.latency:g} ms one way, client at {line.client_speed:g} of this machine's speed, {line.exchange}"
    )
    print_advice(title, found, notes(found))
    click.echo(
        f"Measured: here with {torch.get_num_threads()} thread(s), no line in between, the shortest of several runs.\n"
        "Predicted: client half over the client's speed + server half + line.\n"
        "A later cut sends less or deeper features; what they still show of an image, only 'suture audit' measures."
    )
