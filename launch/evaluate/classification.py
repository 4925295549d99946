"""Scores of a classifier: curves, threshold, confusion, calibration, by site and by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture.launch.evaluate import measures
from suture.launch.evaluate.images import Chosen, Predictions
from suture.launch.output.report.intervals import auroc_interval, wilson

MIDDLE = 0.5


@dataclass(frozen=True)
class Arrays:
    """Predictions as numpy: y_N class numbers, p_NK."""

    y: NDArray[np.int64]
    p: measures.Floats

    @classmethod
    def of(cls, predictions: Predictions) -> Arrays:
        return cls(predictions.targets.numpy(), predictions.probabilities.double().numpy())


def classes_shown(num_classes: int) -> list[int]:
    """The classes that have curves: of two the second alone, whose curve says it all."""
    return [1] if num_classes == 2 else list(range(num_classes))


def threshold(validation: Arrays, sensitivity: float | None) -> tuple[float, str]:
    """The threshold of the second of two classes, and how it was chosen."""
    y = validation.y == 1
    if not len(y) or y.all() or not y.any():
        return MIDDLE, "without validation images of both classes: the middle"
    if sensitivity is None:
        return measures.youden(y, validation.p[:, 1]), "on validation images, by Youden's index"
    chosen = measures.threshold_for(y, validation.p[:, 1], sensitivity)
    return chosen, f"on validation images, for a sensitivity of {sensitivity:g}"


def predicted(p_NK: measures.Floats, cut: float | None) -> Any:
    """Class numbers: by the threshold where there are two classes, else the likeliest."""
    return p_NK.argmax(axis=1) if cut is None else (p_NK[:, 1] >= cut).astype(int)


def scores(
    test: Arrays, validation: Arrays, chosen: Chosen, indices: tuple[int, ...], sensitivity: float | None
) -> dict[str, Any]:
    """All numbers, as JSON takes them."""
    names, num_classes = chosen.source.classes, test.p.shape[1]
    cut, how = threshold(validation, sensitivity) if num_classes == 2 else (None, "the likeliest class")
    guess = predicted(test.p, cut)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (test.y, guess), 1)
    right = guess == test.y
    sites = np.array([chosen.source.examples[index].site for index in indices])
    return {
        "num_images": len(test.y),
        "threshold": cut,
        "threshold_chosen": how,
        "accuracy": _share(int(right.sum()), len(right)),
        "confusion": confusion.tolist(),
        "classes": {
            names[k]: _of_class(test.y == k, test.p[:, k]) | {"recall": _share(*_hits(test.y == k, right))}
            for k in range(num_classes)
        },
        "sites": {
            str(site): {"accuracy": _share(*_hits(sites == site, right))}
            | _areas(Arrays(test.y[sites == site], test.p[sites == site]))
            for site in np.unique(sites)
        },
    }


def _of_class(y_N: measures.Bools, p_N: measures.Floats) -> dict[str, Any]:
    if not y_N.any() or y_N.all():
        return {"num_images": int(y_N.sum())}
    area, precision = measures.auroc(y_N, p_N), measures.average_precision(y_N, p_N)
    bins = measures.calibration(y_N, p_N)
    return {
        "num_images": int(y_N.sum()),
        "auroc": area,
        "auroc_interval": list(auroc_interval(area, int(y_N.sum()), int((~y_N).sum()))),
        "average_precision": precision,
        "average_precision_interval": list(
            measures.interval(lambda rows: measures.average_precision(y_N[rows], p_N[rows]), y_N)
        ),
        "calibration_error": measures.calibration_error(bins),
        "calibration": [vars(one) for one in bins],
    }


def _areas(part: Arrays) -> dict[str, Any]:
    """The mean area of the classes that are shown, where the site has images of them and of others."""
    found = []
    for k in classes_shown(part.p.shape[1]):
        y = part.y == k
        if y.any() and not y.all():
            found.append(measures.auroc(y, part.p[:, k]))
    return {"auroc": sum(found) / len(found)} if found else {}


def _hits(among: Any, right: Any) -> tuple[int, int]:
    return int((among & right).sum()), int(among.sum())


def _share(hits: int, total: int) -> dict[str, Any]:
    if not total:
        return {"num_images": 0}
    return {"value": hits / total, "interval": list(wilson(hits, total)), "num_images": total}
