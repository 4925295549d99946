"""What a defence or a detector is told when a client builds it: what any real client knows of its own run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from suture.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClientView:
    """The client's own run.

    Attributes:
        images: C, H, W of an image.
        smashed: shape at the cut, without the batch.
        normalisation: of the images.
        task: "classification" or "segmentation".
        num_classes: of the data.
        labels_shared: whether labels go up to the server.
    """

    images: tuple[int, int, int]
    smashed: tuple[int, ...]
    normalisation: Literal["imagenet", "symmetric"]
    task: str
    num_classes: int
    labels_shared: bool


def check_bounds(
    what: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Refuses a parameter outside low..high, and NaN.

    Args:
        what: plug-in and parameter, for the message.
        open_low: whether ``low`` itself is refused too.

    Raises:
        ConfigError: names value and bound.
    """
    above = value > low if open_low else value >= low
    if not (above and value <= high) or value == float("inf"):
        bound = f"above {low:g}" if open_low else f"at least {low:g}"
        upto = "" if high == float("inf") else f" and at most {high:g}"
        raise ConfigError(f"{what} must be {bound}{upto}, got {value:g}")
