"""Shapes at the cut, as the attacks' nets need them."""

from __future__ import annotations

import math


def num_halvings(image_size: int, smashed_size: int) -> int:
    """How often the image must be halved to reach the smashed data's size, rounded up."""
    return max(0, math.ceil(math.log2(image_size / max(smashed_size, 1)) - 1e-9))
