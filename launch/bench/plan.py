"""What ``suture bench train`` measures: nets, sizes and cuts, and how long at each."""

from __future__ import annotations

from dataclasses import dataclass

from launch.config import RunOptions

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
        return RunOptions(
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
            augment=False,
            lease=LEASE,
        ).resolved()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole benchmark.

    Attributes:
        rows: the table.
        steps: timed steps of each side.
        block: steps that a side takes before it is the other's turn.
        warm_up: steps of each side that are not counted.
        idle: the run in which a waiting client's use of the processor is measured.
        idle_seconds: for how long.
    """

    rows: tuple[Row, ...]
    steps: int = 12
    block: int = 3
    warm_up: int = 2
    idle: Row = Row(model="resnet34", image_size=64, cut=3, batch_size=32)
    idle_seconds: float = 10.0


_RESNETS = tuple(
    Row(model="resnet34", image_size=px, cut=cut, batch_size=32) for px in (64, 128) for cut in (1, 3, 5, 7)
)

STANDARD = Plan(
    rows=(*_RESNETS, *(Row(model="unet", image_size=128, cut=cut, batch_size=4) for cut in (1, 2, 3)))
)
"""About a quarter of an hour on two quiet cores: the U-Net at its full width, with the batch of a default run."""

FULL = Plan(
    rows=(*_RESNETS, *(Row(model="unet", image_size=128, cut=cut, batch_size=32) for cut in (1, 2, 3)))
)
"""The U-Net at batch 32 too: about three quarters of an hour and 6 GB."""

QUICK = Plan(
    rows=(
        Row(model="resnet18", image_size=32, cut=3, batch_size=4),
        Row(model="unet", image_size=32, cut=1, batch_size=2, width=4),
    ),
    steps=4,
    block=2,
    warm_up=1,
    idle=Row(model="resnet18", image_size=32, cut=3, batch_size=4),
    idle_seconds=0.5,
)
"""Shows that the benchmark runs; its numbers mean nothing."""
