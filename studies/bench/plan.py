"""What ``suture bench train`` measures: nets, sizes and cuts, and how long at each; what all benchmarks share."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files

from suture.launch.options.options import AskedOptions, RunOptions


def say(line: str) -> None:
    """Shows a line at once, also where the output is a file."""
    print(line, flush=True)


LEASE = 600.0
"""Seconds; a client that stands still while the unsplit net takes its block must not count as lost."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    model: str
    """A net of the registry."""
    image_size: int
    """Pixels a side."""
    cut: int
    """The study's number of the cut."""
    batch_size: int
    """Images a step."""
    width: int | None = None
    """Channels of the U-Net's first block; None is its default."""

    @property
    def name(self) -> str:
        """Such as resnet34-128px-cut3; what ``--only`` looks at."""
        return f"{self.model}-{self.image_size}px-cut{self.cut}"

    def options(self, clients: int = 1, exchange: str = "fused") -> RunOptions:
        """The run that is timed: one turn, without augmentation and evaluation."""
        return AskedOptions(
            data="chest-phantom"
            if self.model == "unet"
            else "fundus-phantom",  # names the task; no image is drawn
            model=self.model,
            cut=str(self.cut),
            image_size=self.image_size,
            batch_size=self.batch_size,
            width=self.width,
            clients=clients,
            exchange=exchange,
            epochs=1,
            augment="none",
            lease=LEASE,
        ).resolved()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole benchmark.

    Attributes:
        rows: the table.
        steps: timed steps of each side, at least.
        block: steps that a side takes before it is the other's turn, at least.
        block_seconds: a block lasts about as long, at least: what a side pays for the change is not to weigh more in
            a small net.
        warm_up: steps of each side that are not counted.
        idle: the run in which a waiting client's use of the processor is measured.
        idle_seconds: for how long.
    """

    rows: tuple[Row, ...]
    steps: int = 10
    block: int = 2
    block_seconds: float = 0.5
    warm_up: int = 1
    idle: Row = Row(model="resnet34", image_size=64, cut=3, batch_size=32)
    idle_seconds: float = 5.0


def read_plan(size: str) -> Plan:
    """What train.toml says of a size: ``standard``, ``full`` or ``quick``."""
    told = tomllib.loads((files(__package__) / "train.toml").read_text(encoding="utf-8"))[size]
    if "idle" in told:
        told["idle"] = Row(**told["idle"])
    rows = tuple(Row(cut=cut, **row) for row in told.pop("rows") for cut in row.pop("cuts"))
    return Plan(rows=rows, **told)
