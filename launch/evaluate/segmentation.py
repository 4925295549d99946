"""Scores of a segmentation: Dice by image, their mean with its interval, by site, and the worst."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from suture.launch.evaluate import measures
from suture.launch.evaluate.images import Chosen, Predictions


def dice_by_image(predictions: Predictions) -> list[float]:
    """2 |A and B| / (|A| + |B|); an empty mask predicted empty counts 1."""
    mask, truth = ((t > 0.5).flatten(1) for t in (predictions.probabilities, predictions.targets))
    both, sizes = (mask & truth).sum(1).double(), (mask.sum(1) + truth.sum(1)).double()
    found: list[float] = torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), torch.ones(())).tolist()
    return found


def scores(dice: list[float], chosen: Chosen, indices: tuple[int, ...]) -> dict[str, Any]:
    """All numbers, as JSON takes them."""
    values = np.array(dice)
    sites = np.array([chosen.source.examples[index].site for index in indices])
    return {
        "num_images": len(values),
        "dice": _mean(values),
        "sites": {str(site): _mean(values[sites == site]) for site in np.unique(sites)},
    }


def _mean(values: measures.Floats) -> dict[str, Any]:
    whole = np.ones(len(values), dtype=np.bool_)
    ends = measures.interval(lambda rows: float(values[rows].mean()), whole)
    return {"value": float(values.mean()), "interval": list(ends), "num_images": len(values)}
