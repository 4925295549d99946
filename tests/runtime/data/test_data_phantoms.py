"""The phantoms: deterministic, balanced, honest about colour."""

import pytest
import torch

from suture.runtime.data.chest_phantom import ChestPhantom
from suture.runtime.data.fundus_phantom import FundusPhantom


def auroc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The slow, obvious definition: how often a positive outscores a negative."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
    return float(wins.mean())


def logistic_regression(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Fit on the first half, return the scores of the second."""
    features = (features - features.mean(0)) / features.std(0)
    half = len(labels) // 2
    weights = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features[:half] @ weights[1:] + weights[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[:half].double())
        loss = loss + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (features[half:] @ weights[1:] + weights[0]).detach()


@pytest.fixture(scope="module")
def thousand():
    source = FundusPhantom(1000, seed=3)
    drawn = [source.read(index, 64, 3) for index in range(1000)]
    return torch.stack([image for image, _ in drawn]).double() / 255, torch.stack([y for _, y in drawn])


def test_colour_tells_nothing_about_the_class_of_a_fundus_phantom(thousand):
    """Oracle: held-out AUROC of logistic regression on mean RGB, alone and with the spread; chance is 0.5."""
    images, labels = thousand
    inside = images.sum(1, keepdim=True) > 0.15
    num = inside.sum((2, 3))
    mean = (images * inside).sum((2, 3)) / num
    std = (((images - mean[..., None, None]) * inside).square().sum((2, 3)) / num).sqrt()
    whole = images.mean((2, 3))
    for features, bound in ((mean, 0.6), (whole, 0.6), (torch.cat([mean, std], 1), 0.7)):
        assert 0.4 < auroc(logistic_regression(features, labels), labels[500:]) < bound


def test_lesions_show_where_colour_does_not(thousand):
    """Oracle: dark red and yellow pixels far from their surroundings are commoner with retinopathy."""
    images, labels = thousand
    green = images[:, 1:2]
    local = torch.nn.functional.avg_pool2d(green, 9, stride=1, padding=4)
    centre = (slice(None), slice(None), slice(14, 50), slice(14, 50))
    contrast = (green - local).abs()[centre].flatten(1).quantile(0.97, dim=1)
    assert auroc(contrast, labels) > 0.7


def test_fundus_classes_are_exactly_half_and_half_and_two_eyes_make_a_patient():
    source = FundusPhantom(41, seed=0)
    assert len(source.examples) == 44
    labels = [example.label for example in source.examples]
    assert sum(labels) == 22
    assert [e.key for e in source.examples[:2]] == ["p0000_left", "p0000_right"]
    assert {e.patient for e in source.examples[:2]} == {"p0000"}
    pairs = {(labels[i], labels[i + 1]) for i in range(0, 44, 2)}
    assert (0, 1) in pairs or (1, 0) in pairs, "each eye has its own label"


def test_a_fundus_phantom_does_not_depend_on_how_many_are_listed():
    """So that every rank draws the same picture, whatever it needs."""
    few, many = FundusPhantom(8, seed=5), FundusPhantom(400, seed=5)
    assert few.examples == many.examples[:8]
    assert torch.equal(few.read(7, 64, 3)[0], many.read(7, 64, 3)[0])


@pytest.mark.parametrize("left", [True, False])
def test_the_optic_disc_lies_on_the_side_of_the_eye(left):
    """Oracle: the brightest green lies left of the centre in a left eye."""
    source = FundusPhantom(40, seed=1)
    healthy = [i for i, e in enumerate(source.examples) if e.label == 0 and e.key.endswith("left") == left]
    columns = [int(source.read(i, 64, 3)[0][1].sum(0).argmax()) for i in healthy]
    green = torch.stack([source.read(i, 64, 3)[0][1].float() for i in healthy]).mean(0)
    assert columns
    assert (int(green.argmax()) % 64 < 32) == left


@pytest.mark.parametrize("source_type", [FundusPhantom, ChestPhantom])
def test_phantoms_differ_by_seed_and_by_index(source_type):
    first, again, other = source_type(8, 0), source_type(8, 0), source_type(8, 1)
    image = first.read(3, 48, 1)[0]
    assert torch.equal(image, again.read(3, 48, 1)[0])
    assert not torch.equal(image, other.read(3, 48, 1)[0])
    assert not torch.equal(image, first.read(4, 48, 1)[0])


def test_chest_masks_mark_two_dark_lungs_of_plausible_size():
    source = ChestPhantom(40, seed=0)
    for index in range(40):
        image, mask = source.read(index, 64, 1)
        share = float(mask.mean())
        assert 0.10 < share < 0.40
        assert mask[0, :, :32].any() and mask[0, :, 32:].any()
        grey, inside = image.float(), mask.bool()
        body = (grey > 60) & ~inside
        assert grey[inside].mean() < grey[body].mean()


def test_the_same_chest_is_drawn_at_every_size():
    """Oracle: the mask at 64 px against the mask at 128 px, reduced."""
    source = ChestPhantom(3, seed=2)
    for index in range(3):
        small = source.read(index, 64, 1)[1]
        large = torch.nn.functional.avg_pool2d(source.read(index, 128, 1)[1], 2)
        assert float(((large > 0.5) != (small > 0.5)).float().mean()) < 0.02
