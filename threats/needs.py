"""What a plug-in needs of a run and what it costs; launch, lab and studies ask this and know no plug-in by name.

Both stand in the plug-in's config by the names ``needs`` and ``cost``, as class variables or properties: they may
depend on its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from suture.runtime.errors import ConfigError

SAME_SOURCE = "run"
"""Auxiliary images of the run's own source, which no client was dealt."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Training images of the first client's whose class an attack knows, and which gradient is theirs.

    Attributes:
        images: of each class.
        round: whose batches they are found in.
        draw: which of them; another number, other images.
    """

    images: int
    round: int
    draw: int = 0


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an attack needs beside what crosses the wire.

    Attributes:
        images: auxiliary images that it owns: none, or at least 2, for the judge compares with their mean.
        live: whether it acts while the net is trained; else the recording of a run that has ended is enough.
        source: where they come from: "run" for the run's own source, or as ``--data`` takes it.
        queries: what a lab has the first client pass through its bottom for it: nothing, its auxiliary images, or some
            of the client's own training images, which are then handed to it in place of auxiliary ones.
        query_rounds: in how many rounds, the last ones, that is done.
        labels: whether it reads labels, so that they must cross the wire.
        output_gradient: whether it reads the gradient of the top's output, so that labels must stay at home.
        known: what it knows of the first client's training images; None for nothing.
    """

    images: int
    live: bool = True
    source: str = SAME_SOURCE
    queries: Literal["none", "auxiliary", "private"] = "none"
    query_rounds: int = 1
    labels: bool = False
    output_gradient: bool = False
    known: Known | None = None

    def __post_init__(self) -> None:
        if self.images < 0 or self.images == 1:
            raise ConfigError(f"needs: images must be 0 or at least 2, got {self.images}")
        if self.query_rounds < 1:
            raise ConfigError(f"needs: query_rounds must be at least 1, got {self.query_rounds}")

    def check(self, attack: str, *, labels_shared: bool, classes: bool = True) -> None:
        """Refuses an attack in a run that does not give it what it needs.

        Args:
            attack: its SPEC.
            labels_shared: whether labels cross the wire.
            classes: whether an image has a class; a mask is none.

        Raises:
            ConfigError: names the attack and the remedy.
        """
        if self.labels and not labels_shared:
            raise ConfigError(
                f"attack {attack} with these parameters reads labels, which stay at home in this run; "
                "use --labels shared or other parameters"
            )
        if self.output_gradient and labels_shared:
            raise ConfigError(
                f"attack {attack} reads the gradient of the top's output, which clients send only where labels stay at "
                "home; use --labels home"
            )
        if self.known is not None and not classes:
            raise ConfigError(
                f"attack {attack} infers an image's class, and masks have none; use data with classes"
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds of one thread, measured once and rounded; for planning only.

    Attributes:
        step: of each training step.
        image: of each training image at 64 px; grows with the pixels.
        end: once, after the last turn, judging included.
        end_at_64_px: the part of that which grows with the pixels, at 64 px.
    """

    step: float = 0.0
    image: float = 0.0
    end: float = 0.0
    end_at_64_px: float = 0.0
