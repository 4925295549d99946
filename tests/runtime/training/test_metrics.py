"""Scores and losses against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.runtime.errors import ConfigError, DivergedError
from suture.runtime.training.metrics import (
    ClassificationScores,
    DiceLoss,
    SegmentationScores,
)
from suture.runtime.training.objectives import build_criterion, build_scores, main_metric, main_score


def _binary_logits(margins: list[float]) -> torch.Tensor:
    return torch.tensor([[0.0, margin] for margin in margins])


def _pair_count_auroc(scores: list[float], labels: list[int]) -> float:
    """Share of (positive, negative) pairs in the right order, a tie counting half: AUROC by definition."""
    positive = [s for s, y in zip(scores, labels, strict=True) if y == 1]
    negative = [s for s, y in zip(scores, labels, strict=True) if y == 0]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def test_binary_scores_equal_those_counted_by_hand() -> None:
    """Oracle: a table of five images.

    margins 2, 1, -1, -3, 0.5 -> predicted 1 1 0 0 1; labels 1 0 1 0 1: 3 of 5 right; recall of class 1 is
    2/3, of class 0 is 1/2; of 6 pairs, 2>1 2>-3 -1>-3 .5>-3 are right, -1<1 and .5<1 are wrong: 4/6.
    """
    scores = ClassificationScores(2)
    scores.update(_binary_logits([2, 1, -1]), torch.tensor([1, 0, 1]))
    scores.update(_binary_logits([-3, 0.5]), torch.tensor([0, 1]))
    assert scores.compute() == pytest.approx(
        {
            "accuracy": 3 / 5,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "auroc": 4 / 6,
            "majority_accuracy": 3 / 5,
            "num_images": 5,
        }
    )


def test_auroc_is_that_of_all_images_however_they_are_batched() -> None:
    """Oracle: pair counting; the first batch lies in [0, 1], where torchmetrics skips its sigmoid."""
    margins, labels = [0.9, 0.1, 0.2, -2.0, 3.0, -0.5], [1, 0, 1, 0, 0, 1]
    scores = ClassificationScores(2)
    scores.update(_binary_logits(margins[:3]), torch.tensor(labels[:3]))
    scores.update(_binary_logits(margins[3:]), torch.tensor(labels[3:]))
    assert scores.compute()["auroc"] == pytest.approx(_pair_count_auroc(margins, labels))


def test_auroc_does_not_saturate_for_a_very_sure_net() -> None:
    """Oracle: pair counting; sigmoid(50) == sigmoid(60) == 1 in floating point, the order must survive."""
    scores = ClassificationScores(2)
    scores.update(_binary_logits([60, 50, 55]), torch.tensor([1, 0, 0]))
    assert scores.compute()["auroc"] == 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=12))
def test_auroc_equals_the_share_of_ordered_pairs(images: list[tuple[int, int]]) -> None:
    """Oracle: pair counting, with many ties; the key is missing exactly when one class is."""
    margins, labels = [float(margin) for margin, _ in images], [label for _, label in images]
    scores = ClassificationScores(2)
    scores.update(_binary_logits(margins), torch.tensor(labels))
    computed = scores.compute()
    assert ("auroc" in computed) == (len(set(labels)) == 2)
    if "auroc" in computed:
        assert computed["auroc"] == pytest.approx(_pair_count_auroc(margins, labels))


def test_multiclass_scores_average_over_the_classes_present() -> None:
    """Oracle: by hand. Class 2 is absent but guessed once: it must not count as a recall or an AUROC of 0.

    predicted 0 2 1, labels 0 0 1: accuracy 2/3, recalls 1/2 and 1. Class 0 against the rest orders images
    0 before 2 and 1 before 2 by softmax (p0 = .79, .09, .05), class 1 likewise the other way round.
    """
    logits_NK = torch.tensor([[2.0, 0.0, 0.0], [0.6, 0.0, 3.0], [-1.0, 2.0, -1.0]])
    scores = ClassificationScores(3)
    scores.update(logits_NK, torch.tensor([0, 0, 1]))
    assert scores.compute() == pytest.approx(
        {
            "accuracy": 2 / 3,
            "balanced_accuracy": 3 / 4,
            "auroc": 1.0,
            "majority_accuracy": 2 / 3,
            "num_images": 3,
        }
    )


def test_one_class_alone_gives_no_auroc_and_no_nan() -> None:
    """Oracle: by hand; AUROC needs both classes."""
    scores = ClassificationScores(2)
    scores.update(_binary_logits([1, -1]), torch.tensor([1, 1]))
    assert scores.compute() == {
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "majority_accuracy": 1.0,
        "num_images": 2,
    }


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_scores_of_no_images_say_so(task: str) -> None:
    """Oracle: nothing was seen, so nothing but the count can be told."""
    assert build_scores(task, 2).compute() == {"num_images": 0}


def test_segmentation_scores_are_means_over_images() -> None:
    """Oracle: by hand on 2x2 masks.

    Image 1: predicted 2 pixels, true 1, overlap 1: dice 2/3, jaccard 1/2, 3 of 4 pixels. Image 2: both
    empty: 1, 1, 1. Image 3: true 1, predicted none: 0, 0, 3/4. A logit of 0 (probability .5) is background.
    """
    logits_N1HW = torch.tensor([[[[1.0, 2.0], [-1, -1]]], [[[-1.0, 0], [-2, -3]]], [[[-1.0, -1], [-1, -1]]]])
    mask_N1HW = torch.tensor([[[[1, 0], [0, 0]]], [[[0, 0], [0, 0]]], [[[0, 0], [0, 1]]]])
    scores = SegmentationScores()
    scores.update(logits_N1HW[:1], mask_N1HW[:1].float())
    scores.update(logits_N1HW[1:], mask_N1HW[1:].bool())
    assert scores.compute() == pytest.approx(
        {
            "dice": (2 / 3 + 1 + 0) / 3,
            "jaccard": (1 / 2 + 1 + 0) / 3,
            "pixel_accuracy": (3 / 4 + 1 + 3 / 4) / 3,
            "num_images": 3,
        }
    )


@pytest.mark.parametrize(
    ("task", "logits"), [("classification", torch.zeros(2, 2)), ("segmentation", torch.zeros(2, 1, 2, 2))]
)
def test_a_logit_that_is_not_finite_is_refused(task: str, logits: torch.Tensor) -> None:
    """Oracle: no score can be told from NaN."""
    targets = torch.zeros(2, dtype=torch.long) if task == "classification" else torch.zeros_like(logits)
    with pytest.raises(DivergedError, match="not finite"):
        build_scores(task, 2).update(logits / 0, targets)


def test_targets_that_do_not_fit_are_refused() -> None:
    """Oracle: the message names what was expected and what came."""
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 0\.\.2"):
        ClassificationScores(2).update(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"expected logits \(N, 2\)"):
        ClassificationScores(2).update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        SegmentationScores().update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="differ in shape"):
        DiceLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def test_scores_keep_no_graph() -> None:
    """Oracle: what was kept requires no gradient."""
    scores = ClassificationScores(2)
    scores.update(torch.zeros(2, 2, requires_grad=True), torch.tensor([0, 1]))
    assert not scores._logits_NK[0].requires_grad


def test_dice_loss_equals_the_value_worked_out_by_hand() -> None:
    """Oracle: probabilities 1/2 and 3/4, mask 1 and 0: 1 - (2 * .5 + 1) / (1.25 + 1 + 1) over the batch."""
    logits = torch.tensor([0.0, torch.logit(torch.tensor(0.75)).item()]).reshape(2, 1, 1, 1)
    mask = torch.tensor([1, 0]).reshape(2, 1, 1, 1)
    assert DiceLoss()(logits, mask).item() == pytest.approx(1 - 2 / 3.25)


def test_dice_loss_has_the_gradient_of_finite_differences() -> None:
    """Oracle: torch.autograd.gradcheck in double precision."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 3, 3, dtype=torch.double, generator=generator, requires_grad=True)
    mask = torch.randint(0, 2, (2, 1, 3, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda x: DiceLoss()(x, mask), (logits,))


def test_the_classification_criterion_takes_logits_and_weights() -> None:
    """Oracle: weighted mean of -log softmax, by hand: uniform logits give log 2 whatever the weights."""
    criterion = build_criterion("classification", torch.tensor([1.0, 3.0]))
    assert criterion(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1])).item() == pytest.approx(
        0.693147, abs=1e-5
    )
    assert criterion(torch.tensor([[0.0, 100.0]]), torch.tensor([1])).item() == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="--class-weights none"):
        build_criterion("segmentation", torch.ones(2))


def test_the_main_metric_falls_back_where_it_is_undefined() -> None:
    """Oracle: the contract; AUROC, else balanced accuracy; nothing evaluated is None."""
    assert (main_metric("classification"), main_metric("segmentation")) == ("auroc", "jaccard")
    assert main_score("classification", {"auroc": 0.7, "balanced_accuracy": 0.6}) == 0.7
    assert main_score("classification", {"balanced_accuracy": 0.6}) == 0.6
    assert main_score("segmentation", {"num_images": 0}) is None
    with pytest.raises(
        ConfigError,
        match=r"unknown task 'detection'; known: classification, multi-label, ordinal, segmentation",
    ):
        main_metric("detection")
