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
class Needs:
    """What an attack needs beside what crosses the wire.

    Attributes:
        images: auxiliary images that it owns, at least 2: the judge compares with their mean.
        live: whether it acts while the net is trained; else the recording of a run that has ended is enough.
        source: where they come from: "run" for the run's own source, or as ``--data`` takes it.
        queries: what a lab has the first client pass through its bottom for it: nothing, its auxiliary images, or some
            of the client's own training images, which are then handed to it in place of auxiliary ones.
        query_rounds: in how many rounds, the last ones, that is done.
        labels: whether it reads labels, so that they must cross the wire.
    """

    images: int
    live: bool = True
    source: str = SAME_SOURCE
    queries: Literal["none", "auxiliary", "private"] = "none"
    query_rounds: int = 1
    labels: bool = False

    def __post_init__(self) -> None:
        for name, least in (("images", 2), ("query_rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"needs: {name} must be at least {least}, got {getattr(self, name)}")

    def check(self, attack: str, *, labels_shared: bool) -> None:
        """Refuses an attack in a run that does not give it what it needs.

        Raises:
            ConfigError: names the attack and the remedy.
        """
        if self.labels and not labels_shared:
            raise ConfigError(
                f"attack {attack} with these parameters reads labels, which stay at home in this run; "
                "use --labels shared or other parameters"
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
