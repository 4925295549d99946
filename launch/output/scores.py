"""Which scores people are shown of each task, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

from suture.runtime.data.source import Task

NAMES = {
    "auroc": "AUROC",
    "quadratic_kappa": "quadratic kappa",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "majority_accuracy": "majority class",
    "jaccard": "Jaccard",
    "dice": "Dice",
    "pixel_accuracy": "pixel accuracy",
    "label_accuracy": "accuracy of labels",
    "label_majority": "majority of labels",
    "loss": "loss",
}
HEADLINES = ("quadratic_kappa", "accuracy", "label_accuracy", "auroc", "dice", "jaccard")
"""Those of a progress line, of which a task has one or two."""
_ACCURACY = (
    "of accuracy by Wilson's score method; of AUROC, for two classes, by Newcombe's method 5 from Hanley and McNeil's "
    "variance"
)
_WHAT_THEY_SAY = (
    "They say how much another n images of the same kind could differ, with the images taken as independent: several "
    "images of one patient, another seed or another hospital make it more."
)
_OF_CLASSES = (
    "Balanced accuracy has none: it would need the counts of each class. The majority class is what naming the site's "
    "commonest class every time would reach."
)


@dataclass(frozen=True)
class ShownScores:
    """Of one task.

    Attributes:
        validated: by round, in the report.
        tested: at the end.
        charted: drawn by round.
        share_scale: whether all of them share one scale.
        note: what is to be known of the test scores' intervals.
    """

    validated: tuple[str, ...]
    tested: tuple[str, ...]
    charted: tuple[str, ...]
    share_scale: bool
    note: str

    def in_table(self) -> dict[str, str]:
        """Of the table at the end, with their names."""
        return {name: NAMES[name] for name in dict.fromkeys((*self.charted, *self.tested))}


SHOWN: dict[str, ShownScores] = {
    Task.CLASSIFICATION: ShownScores(
        ("loss", "auroc", "balanced_accuracy"),
        ("auroc", "accuracy", "majority_accuracy", "balanced_accuracy"),
        ("accuracy", "balanced_accuracy", "auroc"),
        True,
        f"Intervals are 95 %: {_ACCURACY}. {_WHAT_THEY_SAY} {_OF_CLASSES}",
    ),
    Task.ORDINAL: ShownScores(
        ("loss", "quadratic_kappa", "balanced_accuracy"),
        ("quadratic_kappa", "accuracy", "majority_accuracy", "balanced_accuracy"),
        ("accuracy", "balanced_accuracy", "quadratic_kappa"),
        True,
        "Quadratic kappa is agreement beyond chance, in which a grade that is far off counts for more than a near "
        "miss: 1 is perfect, 0 chance; 'suture evaluate' gives its interval. Intervals of accuracy are 95 %, by "
        f"Wilson's score method. {_WHAT_THEY_SAY} {_OF_CLASSES}",
    ),
    Task.MULTI_LABEL: ShownScores(
        ("loss", "auroc", "label_accuracy"),
        ("auroc", "label_accuracy", "label_majority"),
        ("label_accuracy", "auroc"),
        True,
        "AUROC is the mean over the findings that some images have and some not; each finding's own is in "
        "summary.json. Accuracy of labels is the share of right answers over images and findings, their majority what "
        "the commoner answer to each finding would reach. Intervals: 'suture evaluate'.",
    ),
    Task.SEGMENTATION: ShownScores(
        ("loss", "jaccard", "dice"),
        ("jaccard", "dice", "pixel_accuracy"),
        ("dice", "jaccard", "pixel_accuracy"),
        False,
        "The scores are means over images. They have no intervals: those would need the spread over images, which "
        "sites do not send.",
    ),
}
