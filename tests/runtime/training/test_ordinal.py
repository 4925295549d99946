"""Ordered grades and several findings: losses, probabilities, scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from suture.runtime.errors import ConfigError, DivergedError
from suture.runtime.training.findings import FindingsLoss, score_names
from suture.runtime.training.objectives import OBJECTIVES, build_criterion, build_scores, objective
from suture.runtime.training.ordinal import CornLoss, grade_probabilities, grades_of, quadratic_kappa

GRADES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60)


@given(GRADES)
def test_kappa_is_scikit_learns(pairs):
    """Oracle: sklearn's cohen_kappa_score with quadratic weights, nan where ours is None."""
    true, predicted = (torch.tensor(side) for side in zip(*pairs, strict=True))
    ours = quadratic_kappa(true, predicted, 5)
    if len({*true.tolist(), *predicted.tolist()}) == 1:
        assert ours is None
        return
    theirs = metrics.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(5))
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_the_loss_is_the_papers():
    """Oracle: the paper's sum, written with loops: at each threshold, over the images that passed the one before."""
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 4), torch.randint(0, 5, (12,))
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0])
    for weigh in (torch.ones(5), weights):
        total = counted = 0.0
        for row, grade in zip(logits.tolist(), labels.tolist(), strict=True):
            for k, logit in enumerate(row):
                if grade < k:
                    continue
                above = 1 / (1 + math.exp(-logit))
                total -= float(weigh[grade]) * math.log(above if grade > k else 1 - above)
                counted += float(weigh[grade])
        assert float(CornLoss(weigh)(logits, labels)) == pytest.approx(total / counted, rel=1e-5)
    assert float(CornLoss()(logits, labels)) == pytest.approx(
        float(CornLoss(torch.ones(5))(logits, labels)), rel=1e-6
    )


def test_probabilities_of_grades_are_a_distribution_and_its_middle_is_predicted():
    """Oracle: products of sigmoids by hand; of two grades it is the sigmoid."""
    torch.manual_seed(1)
    logits = 4 * torch.randn(50, 4)
    p = grade_probabilities(logits)
    assert p.min() >= 0 and torch.allclose(p.sum(1), torch.ones(50), atol=1e-6)
    above = logits.sigmoid().cumprod(1)
    assert torch.allclose(1 - p.cumsum(1)[:, :-1], above, atol=1e-6)
    assert torch.equal(grades_of(p), (above > 0.5).sum(1))
    assert torch.allclose(grade_probabilities(logits[:, :1])[:, 1], logits[:, 0].sigmoid(), atol=1e-6)


def test_no_image_that_counts_is_no_division_by_zero():
    """Oracle: by hand."""
    loss = CornLoss(torch.tensor([0.0, 1.0, 1.0]))(torch.randn(3, 2), torch.zeros(3, dtype=torch.long))
    assert float(loss) == 0.0


def test_scores_of_grades_are_scikit_learns():
    """Oracle: sklearn on the grades predicted by hand."""
    torch.manual_seed(2)
    logits, labels = torch.randn(40, 4), torch.randint(0, 5, (40,))
    scores = build_scores("ordinal", 5)
    scores.update(logits[:25], labels[:25]), scores.update(logits[25:], labels[25:])
    guess = (logits.sigmoid().cumprod(1) > 0.5).sum(1)
    found = scores.compute()
    assert found["quadratic_kappa"] == pytest.approx(
        metrics.cohen_kappa_score(labels, guess, weights="quadratic"), abs=1e-9
    )
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, guess))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, guess))
    assert found["num_images"] == 40


def test_the_loss_of_findings_is_torchs():
    """Oracle: torch's own binary cross-entropy, with a weight for those that have a finding."""
    torch.manual_seed(3)
    logits, targets, weights = torch.randn(9, 4), torch.randint(0, 2, (9, 4)), torch.rand(4)
    bce = torch.nn.BCELoss()(logits.sigmoid(), targets.float())
    assert float(FindingsLoss()(logits, targets)) == pytest.approx(float(bce), rel=1e-5)
    weighed = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, targets.float())
    assert float(FindingsLoss(weights)(logits, targets)) == float(weighed)


def test_scores_of_findings_are_scikit_learns():
    """Oracle: sklearn's area by finding and their mean; one that no image has is left out."""
    torch.manual_seed(4)
    names = ("edema", "pleural effusion", "hernia")
    logits, targets = torch.randn(30, 3), torch.randint(0, 2, (30, 3))
    targets[:, 2] = 0
    scores = build_scores("multi-label", names)
    scores.update(logits, targets)
    found = scores.compute()
    areas = [metrics.roc_auc_score(targets[:, k], logits[:, k]) for k in (0, 1)]
    assert found["auroc_edema"] == pytest.approx(areas[0]) and "auroc_hernia" not in found
    assert found["auroc_pleural_effusion"] == pytest.approx(areas[1])
    assert found["auroc"] == pytest.approx(sum(areas) / 2)
    assert found["label_accuracy"] == pytest.approx(float(((logits > 0) == targets.bool()).double().mean()))


@pytest.mark.parametrize("names", [("a b", "a-b"), ("x" * 50 + "1", "x" * 50 + "2"), ("Ödem, links", "1+")])
def test_names_of_findings_are_names_that_messages_take(names):
    """Oracle: what `check_scores` asks of a name; no two are alike."""
    made = score_names(names)
    assert len(set(made)) == 2 and all(name.isidentifier() and len(name) <= 40 for name in made)


@pytest.mark.parametrize("task", OBJECTIVES)
def test_each_task_scores_nothing_where_nothing_was_seen(task):
    """Oracle: only the count can be told; a logit that is not finite is refused."""
    assert build_scores(task, 3).compute() == {"num_images": 0}
    outputs = {"segmentation": torch.zeros(2, 1, 2, 2)}.get(
        task, torch.zeros(2, objective(task).num_outputs(3))
    )
    targets = {"segmentation": outputs, "multi-label": torch.zeros(2, 3)}.get(task, torch.zeros(2))
    with pytest.raises(DivergedError, match="not finite"):
        build_scores(task, 3).update(outputs / 0, targets.long() if task != "segmentation" else targets)


@pytest.mark.parametrize("task", ["ordinal", "multi-label", "segmentation"])
def test_labels_are_smoothed_for_classes_alone(task):
    """Oracle: the message."""
    with pytest.raises(ConfigError, match=f"label-smoothing is for classification; leave it out for {task}"):
        build_criterion(task, None, 0.1)


def test_balanced_weights_of_findings():
    """Oracle: by hand: those without it against those with it; where one of them is nobody, 1."""
    assert objective("multi-label").balanced((2, 0, 8), 8) == (3.0, 1.0, 1.0)
