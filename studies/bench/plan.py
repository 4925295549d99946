"""What ``suture bench train`` measures: nets, sizes and cuts, and how long at each; what all benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

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
            augment=False,
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


def _resnets(image_size: int, batch_size: int, cuts: tuple[int, ...]) -> tuple[Row, ...]:
    return tuple(Row(model="resnet34", image_size=image_size, cut=cut, batch_size=batch_size) for cut in cuts)


def _unets(image_size: int, batch_size: int, width: int | None, cuts: tuple[int, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(model="unet", image_size=image_size, cut=cut, batch_size=batch_size, width=width) for cut in cuts
    )


STANDARD = Plan(
    rows=(
        *_resnets(64, 32, (1, 3, 5, 7)),
        *_resnets(128, 32, (1, 3, 5)),
        *_resnets(224, 4, (1,)),
        *_unets(64, 4, 16, (2,)),
        *_unets(128, 4, 16, (1, 2, 3)),
        *_unets(224, 2, 16, (2,)),
    ),
)
"""About six minutes on two quiet cores: small batches at 224 px, the U-Net at a quarter of its width."""

FULL = Plan(
    rows=(
        *_resnets(64, 32, (1, 3, 5, 7)),
        *_resnets(128, 32, (1, 3, 5, 7)),
        *_resnets(224, 32, (1, 3, 5, 7)),
        *_unets(64, 8, None, (1, 2, 3)),
        *_unets(128, 4, None, (1, 2, 3)),
        *_unets(224, 2, None, (1, 2, 3)),
    ),
)
"""About 20 minutes on two quiet cores: ResNet-34 in a real run's batches, the U-Net in its full width."""

QUICK = Plan(
    rows=(
        Row(model="resnet18", image_size=32, cut=3, batch_size=4),
        Row(model="unet", image_size=32, cut=1, batch_size=2, width=4),
    ),
    steps=4,
    block_seconds=0.0,
    idle=Row(model="resnet18", image_size=32, cut=3, batch_size=4),
    idle_seconds=0.5,
)
"""Shows that the benchmark runs; its numbers mean nothing."""
