"""Scores of a classifier: curves, threshold, confusion, calibration, by site and by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suture.launch.evaluate import measures
from suture.launch.evaluate.images import Chosen, Predictions
from suture.launch.output.report.intervals import auroc_interval, wilson
from suture.runtime.data.source import Task
from suture.runtime.training.objectives import objective
from suture.runtime.training.ordinal import quadratic_kappa

MIDDLE = 0.5
_DECIDES = {
    Task.CLASSIFICATION: "the likeliest class",
    Task.ORDINAL: "the grade in the middle of the probabilities",
}


@dataclass(frozen=True)
class Arrays:
    """Predictions as numpy: y_N class numbers, or y_NK whether each finding is there; p_NK."""

    y: NDArray[np.int64]
    p: measures.Floats

    def of_class(self, number: int) -> measures.Bools:
        """Which images are of a class, or have a finding."""
        found: measures.Bools = self.y == number if self.y.ndim == 1 else self.y[:, number] == 1
        return found

    def rows(self, chosen: Any) -> Arrays:
        """Those of some images."""
        return Arrays(self.y[chosen], self.p[chosen])

    def shown(self) -> list[int]:
        """The classes that have curves: of two the second alone, whose curve says it all."""
        num_classes = self.p.shape[1]
        return [1] if num_classes == 2 and self.y.ndim == 1 else list(range(num_classes))

    @classmethod
    def of(cls, predictions: Predictions) -> Arrays:
        return cls(predictions.targets.numpy(), predictions.probabilities.double().numpy())


def threshold(validation: Arrays, sensitivity: float | None, number: int = 1) -> tuple[float, str]:
    """The threshold of a class, the second of two or a finding, and how it was chosen."""
    y, p = validation.of_class(number), validation.p[:, number]
    if not len(y) or y.all() or not y.any():
        return MIDDLE, "without validation images of both classes: the middle"
    if sensitivity is None:
        return measures.youden(y, p), "on validation images, by Youden's index"
    chosen = measures.threshold_for(y, p, sensitivity)
    return chosen, f"on validation images, for a sensitivity of {sensitivity:g}"


def predicted(p_NK: measures.Floats, cut: float | None, task: str = Task.CLASSIFICATION) -> Any:
    """Class numbers: by the threshold where there are two classes, else as the task decides."""
    if cut is not None:
        return (p_NK[:, 1] >= cut).astype(int)
    return objective(task).decided(torch.from_numpy(p_NK)).numpy()


def scores(
    test: Arrays, validation: Arrays, chosen: Chosen, indices: tuple[int, ...], sensitivity: float | None
) -> dict[str, Any]:
    """All numbers, as JSON takes them."""
    names, num_classes = chosen.source.classes, test.p.shape[1]
    task = chosen.source.task
    cut, how = threshold(validation, sensitivity) if num_classes == 2 else (None, _DECIDES[task])
    guess = predicted(test.p, cut, task)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (test.y, guess), 1)
    right = guess == test.y
    sites = np.array([chosen.source.examples[index].site for index in indices])
    return {
        "num_images": len(test.y),
        "threshold": cut,
        "threshold_chosen": how,
        "accuracy": share(int(right.sum()), len(right)),
        **(kappa(test.y, guess, num_classes) if task is Task.ORDINAL else {}),
        "confusion": confusion.tolist(),
        "classes": {
            names[k]: of_class(test.y == k, test.p[:, k]) | {"recall": share(*_hits(test.y == k, right))}
            for k in range(num_classes)
        },
        "sites": {
            str(site): {"accuracy": share(*_hits(sites == site, right))} | areas(test.rows(sites == site))
            for site in np.unique(sites)
        },
    }


def kappa(y_N: NDArray[np.int64], guess_N: NDArray[np.int64], num_grades: int) -> dict[str, Any]:
    """Quadratic weighted kappa and its interval; empty where it is not defined."""
    true, guess = torch.from_numpy(y_N), torch.from_numpy(guess_N)
    found = quadratic_kappa(true, guess, num_grades)
    if found is None:
        return {}

    def again(rows: NDArray[np.int64]) -> float:
        drawn = torch.from_numpy(rows)
        value = quadratic_kappa(true[drawn], guess[drawn], num_grades)
        return found if value is None else value

    whole = np.ones(len(y_N), dtype=np.bool_)
    return {"quadratic_kappa": {"value": found, "interval": list(measures.interval(again, whole))}}


def of_class(y_N: measures.Bools, p_N: measures.Floats) -> dict[str, Any]:
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


def areas(part: Arrays) -> dict[str, Any]:
    """The mean area of the classes that are shown, where the site has images of them and of others."""
    found = []
    for k in part.shown():
        y = part.of_class(k)
        if y.any() and not y.all():
            found.append(measures.auroc(y, part.p[:, k]))
    return {"auroc": sum(found) / len(found)} if found else {}


def _hits(among: Any, right: Any) -> tuple[int, int]:
    return int((among & right).sum()), int(among.sum())


def share(hits: int, total: int) -> dict[str, Any]:
    """A share of images, with Wilson's interval."""
    if not total:
        return {"num_images": 0}
    return {"value": hits / total, "interval": list(wilson(hits, total)), "num_images": total}
