"""Scores where an image may have several findings: each finding is a question of its own, with its own threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

from suture.launch.evaluate.classification import Arrays, areas, of_class, share, threshold
from suture.launch.evaluate.images import Chosen


def scores(
    test: Arrays, validation: Arrays, chosen: Chosen, indices: tuple[int, ...], sensitivity: float | None
) -> dict[str, Any]:
    """All numbers, as JSON takes them."""
    names = chosen.source.classes
    sites = np.array([chosen.source.examples[index].site for index in indices])
    return {
        "num_images": len(test.y),
        **areas(test),
        "findings": {name: _of_finding(k, test, validation, sensitivity) for k, name in enumerate(names)},
        "sites": {
            str(site): {"num_images": int((sites == site).sum())} | areas(test.rows(sites == site))
            for site in np.unique(sites)
        },
    }


def _of_finding(k: int, test: Arrays, validation: Arrays, sensitivity: float | None) -> dict[str, Any]:
    there, p = test.of_class(k), test.p[:, k]
    cut, how = threshold(validation, sensitivity, k)
    said = p >= cut
    return of_class(there, p) | {
        "threshold": cut,
        "threshold_chosen": how,
        "sensitivity": share(int((said & there).sum()), int(there.sum())),
        "specificity": share(int((~said & ~there).sum()), int((~there).sum())),
    }
