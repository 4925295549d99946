"""Where an attacker stands: what the server rank knows of a run by itself, and no image of a client.

Shape legend: N batch; C, H, W image; D dimensions at the cut (h_ND).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from suture.runtime.data.normalise import Normalisation


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """The server's own knowledge of a run: it holds the top, the options and the wire's specification.

    Attributes:
        spec: the attack as it was asked for, for its report.
        smashed_shape: of one image's smashed data, without the batch dimension.
        image_shape: (C, H, W) of an image as the net takes it.
        normalisation: of images at the net's input.
        num_classes: classes of the task, or outputs a pixel.
        labels_shared: whether labels cross the wire.
        nonnegative: whether the block before the cut ends in a ReLU, as the server reads in the model's code:
            smashed data are then never below zero.
        num_rounds: rounds of the run, so that a passive attack knows which is the last.
        folder: RUN/attack, the only place an attack writes to; None to write nothing.
        seed: the run's public seed, from which the attack draws its own generators.
        device: where the server computes.
        top: the server's own top, live; only attacks that say so in ``knows`` may touch it.
        fresh_bottom: builds an untrained net of the bottom's architecture (for an attacker's shadow of it);
            its weights are the attacker's own draw, never a client's.
    """

    spec: str = ""
    smashed_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    normalisation: Normalisation = "imagenet"
    num_classes: int = 2
    labels_shared: bool = True
    nonnegative: bool = False
    num_rounds: int = 1
    folder: Path | None = None
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    top: nn.Module | None = None
    fresh_bottom: Callable[[], nn.Module] | None = None
